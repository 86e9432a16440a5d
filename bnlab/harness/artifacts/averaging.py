"""Averages of the weights over a training, which goes on as it would without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn

from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.training import Callback

if TYPE_CHECKING:
    from bnlab.harness.artifacts.runs import Run

SWA_FROM = 0.75  # share of the training
EMA_DECAY = 0.99


def begin_average(run: Run, model: nn.Module) -> AveragedModel | None:
    """Begin an average of weights and buffers, which takes no weights yet; None without averaging.

    `swa`: all weights after an update alike, from 75% of the training on (Izmailov et al. 2018, arXiv 1803.05407, take
    one of each epoch). `ema`: new = 0.99·old + 0.01·weights after each update, from those after the first one.
    Counts of batches, whole numbers, stay the newest.
    """
    if run.config.averaging == "none":
        return None
    average = get_swa_avg_fn() if run.config.averaging == "swa" else get_ema_avg_fn(EMA_DECAY)

    def average_floats(before: Tensor, newest: Tensor, count: Tensor | int) -> Tensor:
        if before.is_floating_point():
            return average(before, newest, count)
        return newest

    return AveragedModel(model, avg_fn=average_floats, use_buffers=True)


def build_averager(run: Run) -> Callback:
    """Build a callback that takes the weights after an update into the average."""
    first = 1
    if run.config.averaging == "swa":
        first = max(1, round(SWA_FROM * run.steps))

    def average(progress: Progress) -> None:
        if progress.average is not None and progress.step >= first:
            progress.average.update_parameters(progress.model)

    return average
