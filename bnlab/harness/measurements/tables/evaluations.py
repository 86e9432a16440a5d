"""Table `evaluations`: how the network predicts under every estimator's statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.harness.artifacts.corruptions import describe_corruptions
from bnlab.harness.artifacts.data import Split
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import as_list
from bnlab.harness.components import component
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.frozen import EXACT, IMAGES_AT_ONCE, find_population, frozen_statistics, in_batches
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, Source
from bnlab.harness.measurements.tables.gaps import flat_statistics, frozen_checkpoint, tabulate
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.harness.statistics import Exact, Measured, NoStatistics
from bnlab.inference import apply_rule
from bnlab.statistics import using

_ECE_BINS = 15
_NO_STATISTICS = Source(NoStatistics.name, None, NoStatistics.name)

_ABOUT = f"""\
How the network predicts under each estimator's statistics. A network whose norm has no statistics of the batch, such as
a group norm, has a row for each step, with estimator and statistics_split `none`; there is nothing to compare its
predictions with. Exact statistics of each `population` are always among the estimators.

Corruptions change the stored pixels, which are clipped to their range before they are standardized. What one draws for
an image depends on that image alone, and is the same for all networks and strengths. In strength 1, 2 and 3 they are:

{describe_corruptions()}"""


@component
@dataclass(unsafe_hash=True)
class Evaluations(Measurement):
    """Table `evaluations`."""

    name: str = "evaluations"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step estimator momentum statistics_split"),
            "split": text(
                "images that are predicted, see `evaluate_on`: test, val, or train: as many training images as test has"
            ),
            "shift": text(
                "how they differ from the training images, see `shifts`: none, a corruption with its strength, as"
                " noise:1, or fonts:, with those of the test glyphs"
            ),
        },
        others={
            **common("epoch"),
            "images": integer("images that are predicted"),
            "stat_images": integer("images that the statistics were shown; 0 without statistics"),
            "loss": real("cross-entropy, in nats"),
            "accuracy": real("share of images that are predicted right"),
            "ece": real("expected calibration error over 15 equal bins of confidence"),
            "disagreement": real(
                "share of images whose prediction differs from that under exact statistics of the training split "
                "at the same step"
            ),
            "logit_gap": real(
                "root mean square difference of the logits to those under the same exact statistics, relative to theirs"
            ),
        },
    )

    def covers(self, norm: Norm) -> bool:
        return True

    def scope(self, run: Run, sources: list[Source]) -> dict[Source, list[int]]:
        """Choose these sources and always `exact`, of each population, or the network itself, at `accuracy_at`."""
        if not run.has_trace:
            return {_NO_STATISTICS: run.predicted}
        splits = as_list(run.config.population)
        has_rules = any(isinstance(source, InferenceRule) for source in sources)
        if has_rules:
            splits = ["train", *splits]  # rules start from exact statistics of the training split

        exact = [FrozenWeights.of(Exact(), split) for split in splits]
        chosen = [*exact, *sources]
        return dict.fromkeys(chosen, run.predicted)

    def reads(self, run: Run, sources: list[Source]) -> list[int]:
        """List the steps of `accuracy_at`, and the checkpoint whose frozen statistics are used."""
        return [*run.predicted, *frozen_checkpoint(run, sources)]

    def measure(
        self, run: Run, sources: list[Source], steps: list[int], split: str = "test", shift: str = "none"
    ) -> pd.DataFrame:
        """Measure how a split is predicted under a shift, see `Run.images_of`: a row for each step and source."""
        every = run.images_of(split, shift)
        limits = {step: run.limit_at(step) for step in steps}
        samples = {limit: every.sample(limit) for limit in {*limits.values()}}
        images = {step: samples[limit] for step, limit in limits.items()}

        predicted = []
        used = []
        for step in steps:
            predicted.append([len(images[step].labels)])
            used.append([stat_images(run, source, step) for source in sources])

        columns = {
            "split": split,
            "shift": shift,
            "images": predicted,
            "stat_images": used,
        }
        frame = tabulate(run, sources, steps, columns)

        scores = _score_sources(run, sources, steps, images) if run.has_trace else _score_network(run, steps, images)
        frame[["loss", "accuracy", "ece", "disagreement", "logit_gap"]] = np.array(scores)
        return frame


class Prediction(NamedTuple):
    """Logits [N, classes] in float64, and their loss, accuracy and calibration error."""

    logits: Tensor
    loss: float
    accuracy: float
    ece: float


Scores = tuple[float, float, float, float, float]
"""Loss, accuracy, ece, disagreement and logit gap."""


def _score_sources(run: Run, sources: list[Source], steps: list[int], images: Mapping[int, Split]) -> list[Scores]:
    """Score the network under each source's statistics: for each step, on its images, and source."""
    layout = run.trace.layout
    estimates = flat_statistics(run, sources, steps)
    rows: list[Scores] = []
    for k, step in enumerate(steps):
        model = run.model_at(step)
        with using(model, frozen_statistics(run, step, EXACT)):
            exact = predict(model, images[step])

        for s, source in enumerate(sources):
            found = exact
            if source != EXACT:
                with using(model, layout.unflatten(estimates[s, k])):
                    found = predict(model, images[step], source)
            disagreement, logit_gap = compare_logits(exact.logits, found.logits)
            rows.append((found.loss, found.accuracy, found.ece, disagreement, logit_gap))
    return rows


def _score_network(run: Run, steps: list[int], images: Mapping[int, Split]) -> list[Scores]:
    """Score a network without statistics for each step; there are no exact ones to compare it with."""
    rows: list[Scores] = []
    for step in steps:
        model = run.model_at(step)
        found = predict(model.eval(), images[step])
        rows.append((found.loss, found.accuracy, found.ece, math.nan, math.nan))
    return rows


@torch.no_grad()
def predict(model: nn.Module, split: Split, source: Source = EXACT) -> Prediction:
    """Predict a whole split with the statistics that the model holds, by the source's rule if it has one."""
    prediction: AbstractContextManager[nn.Module] = nullcontext(model)
    at_once = IMAGES_AT_ONCE
    if isinstance(source, InferenceRule):
        prediction = apply_rule(model, source.rule)
        at_once = source.images
    parts = []
    with prediction:
        for part in in_batches(len(split.labels), at_once):
            images = split.images[part]
            parts.append(model(images))

    logits = torch.cat(parts).double()
    loss = F.cross_entropy(logits, split.labels).item()
    is_right = logits.argmax(1) == split.labels
    accuracy = is_right.double().mean().item()
    confidence = logits.softmax(1).amax(1)
    error = _measure_calibration(confidence, is_right)
    return Prediction(logits, loss, accuracy, error)


def _measure_calibration(confidence: Tensor, is_right: Tensor) -> float:
    """Measure the expected calibration error over equal bins of confidence (Guo et al. 2017); 0 is calibrated."""
    bins = (confidence * _ECE_BINS).ceil().long().clamp(1, _ECE_BINS) - 1
    excess = confidence - is_right.to(confidence.dtype)
    sums = torch.bincount(bins, weights=excess, minlength=_ECE_BINS)
    return sums.abs().sum().item() / len(confidence)


def compare_logits(exact: Tensor, found: Tensor) -> tuple[float, float]:
    """Compute `disagreement` and `logit_gap` (rms difference over the exact logits' rms)."""
    disagreement = (exact.argmax(1) != found.argmax(1)).double().mean().item()
    square = (found - exact).square().mean()
    logit_gap = (square / exact.square().mean()).sqrt().item()
    return disagreement, logit_gap


def stat_images(run: Run, source: Source, step: int) -> int:
    """Count the images that the statistics are of.

    For running averages and averaged buffers: all that the network was shown until batch norm was frozen.
    """
    if source == _NO_STATISTICS:
        return 0
    if isinstance(source, InferenceRule):
        return source.images
    if isinstance(source, FrozenWeights) and isinstance(source.statistic, Measured):
        size = len(find_population(run, source).labels)
        return min(source.images or run.limit_at(step) or size, size)

    images = len(run.dataset.train.labels)
    last = min(step, run.frozen_from or step)
    if last == run.frozen_from and run.config.freeze_with == "exact":
        return images
    batch_size = run.config.batch_size
    batches = run.batches.per_epoch
    epochs, rest = divmod(last, batches)
    images_of_epoch = min(batches * batch_size, images)
    return epochs * images_of_epoch + rest * batch_size
