"""Freezing batch norm: from a step on it normalizes with statistics that stay as they are, as in eval mode."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

import bnlab
from bnlab.harness.artifacts.cores import share_of_memory
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.training import Callback
from bnlab.layers import batch_norm_layers

if TYPE_CHECKING:
    from bnlab.harness.artifacts.runs import Run

MOMENTUM = 0.1  # PyTorch's, of the running averages that are frozen
_IMAGES_AT_ONCE = 256  # for exact statistics, which do not depend on it


def build_freezer(run: Run) -> Callback:
    """Build a callback that freezes batch norm at its step: writes its statistics and puts it into eval mode."""

    def freeze(progress: Progress) -> None:
        if progress.step != run.frozen_from:
            return
        progress.read_log()  # a network that has diverged has no statistics
        if run.config.freeze_with == "exact":
            measure_exact(run, progress.model, run.dataset.train.images).write_to(progress.model)
        keep_frozen(run, progress)

    return freeze


def measure_exact(run: Run, model: nn.Module, images: Tensor) -> bnlab.Statistics:
    """Measure the exact statistics of a network in training, on images [N, C, H, W]."""
    batches = images.tensor_split(math.ceil(len(images) / _IMAGES_AT_ONCE))
    return bnlab.population_statistics(model, batches, memory=share_of_memory(run.device))


def keep_frozen(run: Run, progress: Progress) -> None:
    """Put batch norm into eval mode where training stands at the step of freezing or after it."""
    if run.frozen_from is None or progress.step < run.frozen_from:
        return
    for layer in batch_norm_layers(progress.model, caller="freeze_at").values():
        layer.eval()
