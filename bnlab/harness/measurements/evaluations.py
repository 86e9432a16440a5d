"""Table `evaluations`: how the network predicts under every estimator's statistics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.harness.artifacts.data import Split
from bnlab.harness.artifacts.norms import NAMES
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.frozen import (
    EXACT,
    IMAGES_AT_ONCE,
    frozen_statistics,
    in_batches,
    population_split,
)
from bnlab.harness.measurements.gaps import flat_statistics, tabulate
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, Source, find_exact
from bnlab.inference import applied
from bnlab.statistics import using

NORMS = NAMES
ECE_BINS = 15
NO_STATISTICS = Source("none", None, "none")  # of a network that trains without statistics of the batch


class Prediction(NamedTuple):
    """Logits [N, classes] in float64 and what they score."""

    logits: Tensor
    loss: float
    accuracy: float
    ece: float


def scope(run: Run, sources: list[Source]) -> dict[Source, list[int]]:
    """These sources and always `exact`, of each population; the steps of `accuracy_at`.

    Without statistics of the batch the network itself.
    """
    if not run.has_trace:
        return {NO_STATISTICS: run.predicted}
    return dict.fromkeys([*find_exact(run.config), *sources], run.predicted)


def evaluations(
    run: Run, sources: list[Source], steps: list[int], split: str = "test", shift: str = "none"
) -> pd.DataFrame:
    """One row for each step and source: how the images of a split are predicted under a shift, see `Run.images_of`."""
    images = run.images_of(split, shift)
    used = [[stat_images(run, source, step) for source in sources] for step in steps]
    columns = {"split": split, "shift": shift, "images": len(images.labels), "stat_images": used}
    frame = tabulate(run, sources, steps, columns)
    if run.has_trace:
        rows = _score_sources(run, sources, steps, images)
    else:
        rows = [_score_network(run, step, images) for step in steps]
    frame[["loss", "accuracy", "ece", "disagreement", "logit_gap"]] = np.array(rows)
    return frame


def _score_network(run: Run, step: int, images: Split) -> tuple[float, ...]:
    """Loss, accuracy and ece of the network as it is; there are no exact statistics to compare it with."""
    return (*predict(run.model_at(step).eval(), images)[1:], math.nan, math.nan)


def _score_sources(run: Run, sources: list[Source], steps: list[int], images: Split) -> list[tuple[float, ...]]:
    """Loss, accuracy, ece, disagreement and logit gap for each step and source."""
    estimates, layout = flat_statistics(run, sources, steps), run.trace.layout
    rows: list[tuple[float, ...]] = []
    for k, step in enumerate(steps):
        model = run.model_at(step)
        with using(model, frozen_statistics(run, step, EXACT)):
            exact = predict(model, images)
        for s, source in enumerate(sources):
            with using(model, layout.unflatten(estimates[s, k])):
                found = exact if source == EXACT else predict(model, images, source)
            rows.append((*found[1:], *compare_logits(exact.logits, found.logits)))
    return rows


@torch.no_grad()
def predict(model: nn.Module, split: Split, source: Source = EXACT) -> Prediction:
    """The model under the statistics that it holds, on a whole split; by the source's rule if it has one."""
    with apply_rule(model, source) as at_once:
        slices = in_batches(len(split.labels), at_once)
        logits = torch.cat([model(split.images[index]) for index in slices]).double()
    hit = logits.argmax(1) == split.labels
    loss = F.cross_entropy(logits, split.labels).item()
    return Prediction(logits, loss, hit.double().mean().item(), ece(logits.softmax(1).amax(1), hit))


@contextlib.contextmanager
def apply_rule(model: nn.Module, source: Source) -> Iterator[int]:
    """Inside the block the model normalizes by the source's rule, if it has one.

    Gives how many images the model is shown at once.
    """
    if isinstance(source, InferenceRule):
        with applied(model, source.rule):
            yield source.images
    else:
        yield IMAGES_AT_ONCE


def ece(confidence: Tensor, hit: Tensor) -> float:
    """Expected calibration error over equal bins of confidence (Guo et al. 2017): a fraction, 0 is calibrated."""
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    excess = torch.zeros(ECE_BINS, dtype=confidence.dtype, device=confidence.device)
    excess.index_add_(0, bins, confidence - hit.to(confidence.dtype))
    return excess.abs().sum().item() / len(confidence)


def compare_logits(exact: Tensor, found: Tensor) -> tuple[float, float]:
    """`disagreement` and `logit_gap` (rms difference over the exact logits' rms)."""
    disagreement = (exact.argmax(1) != found.argmax(1)).double().mean().item()
    return disagreement, ((found - exact).square().mean() / exact.square().mean()).sqrt().item()


def stat_images(run: Run, source: Source, step: int) -> int:
    """Images that the statistics are of.

    A running estimator's, and those of averaged buffers, are all that the network was shown, whatever is forgotten;
    where batch norm is frozen, until then.
    """
    if source == NO_STATISTICS:
        return 0
    if isinstance(source, InferenceRule):
        return source.images
    if isinstance(source, FrozenWeights) and source.statistic != "averaged":
        size = len(population_split(run, source).labels)
        return min(source.images or size, size)
    if run.frozen_from is not None and step >= run.frozen_from:
        if run.config.freeze_with == "exact":
            return len(run.dataset.train.labels)
        step = run.frozen_from
    epochs, rest = divmod(step, run.batches.per_epoch)
    per_epoch = min(run.batches.per_epoch * run.config.batch_size, len(run.dataset.train.labels))
    return epochs * per_epoch + rest * run.config.batch_size
