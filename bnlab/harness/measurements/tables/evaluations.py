"""Table `evaluations`: how the network predicts under every estimator's statistics."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

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
from bnlab.harness.measurements.estimates import (
    EXACT,
    IMAGES_AT_ONCE,
    find_population,
    flat_statistics,
    frozen_statistics,
    in_batches,
    tabulate,
)
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.harness.statistic_kinds import Exact, Measured, NoStatistics
from bnlab.inference import Rule, apply_rule
from bnlab.statistics import using

_ECE_BINS = 15
_NO_STATISTICS = Subject(NoStatistics(), NoStatistics.name)

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

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose these subjects and always `exact`, of each population, or the network itself, at `accuracy_at`."""
        if not run.has_trace:
            return {_NO_STATISTICS: run.predicted}
        splits = as_list(run.config.population)
        if any(isinstance(each.statistic, Rule) for each in subjects):
            splits = ["train", *splits]  # rules start from exact statistics of the training split

        exact = [Subject(Exact(), split) for split in splits]
        return dict.fromkeys([*exact, *subjects], run.predicted)

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List the steps of `accuracy_at`, and the last one, from which frozen running averages are read."""
        return [*run.predicted, *run.wanted[-1:]]

    def measure(
        self, run: Run, subjects: list[Subject], steps: list[int], split: str = "test", shift: str = "none"
    ) -> pd.DataFrame:
        """Measure how a split is predicted under a shift, see `Run.images_of`: a row for each step and subject."""
        every = run.images_of(split, shift)
        estimates = flat_statistics(run, subjects, steps) if run.has_trace else None
        rows = []
        for k, step in enumerate(steps):
            images = every.sample(run.limit_at(step))
            if estimates is None:  # there are no exact statistics to compare the network with
                scores = [(predict(run.model_at(step).eval(), images), math.nan, math.nan)]
            else:
                scores = _compare_predictions(run, step, subjects, estimates[:, k], images)
            for subject, (prediction, disagreement, logit_gap) in zip(subjects, scores, strict=True):
                row = {
                    "images": len(images.labels),
                    "stat_images": count_images(run, subject, step),
                    "loss": prediction.loss,
                    "accuracy": prediction.accuracy,
                    "ece": prediction.ece,
                    "disagreement": disagreement,
                    "logit_gap": logit_gap,
                }
                rows.append(row)

        frame = tabulate(subjects, steps, {"split": split, "shift": shift})
        return pd.concat([frame, pd.DataFrame(rows)], axis=1)


class Prediction(NamedTuple):
    """Logits [N, classes] in float64, and their loss, accuracy and calibration error."""

    logits: Tensor
    loss: float
    accuracy: float
    ece: float


def _compare_predictions(
    run: Run, step: int, subjects: list[Subject], estimates: Tensor, images: Split
) -> list[tuple[Prediction, float, float]]:
    """Predict under each subject's statistics [subjects, 2, channels], and compare the logits with exact ones."""
    model = run.model_at(step)
    with using(model, frozen_statistics(run, step, EXACT)):
        exact = predict(model, images)

    scores = []
    for subject, values in zip(subjects, estimates, strict=True):
        found = exact
        if subject != EXACT:
            with using(model, run.trace.layout.unflatten(values)):
                found = predict(model, images, subject)
        scores.append((found, *compare_logits(exact.logits, found.logits)))
    return scores


@torch.no_grad()
def predict(model: nn.Module, split: Split, subject: Subject = EXACT) -> Prediction:
    """Predict a whole split with the statistics that the model holds, by the subject's rule if it has one."""
    prediction: AbstractContextManager[nn.Module] = nullcontext(model)
    if isinstance(subject.statistic, Rule):
        prediction = apply_rule(model, subject.statistic)
    parts = []
    with prediction:
        for part in in_batches(len(split.labels), subject.at_once or IMAGES_AT_ONCE):
            images = split.images[part]
            parts.append(model(images))

    logits = torch.cat(parts).double()
    loss = F.cross_entropy(logits, split.labels).item()
    is_right = logits.argmax(1) == split.labels
    accuracy = is_right.double().mean().item()
    error = _measure_calibration(logits, is_right)
    return Prediction(logits, loss, accuracy, error)


def _measure_calibration(logits: Tensor, is_right: Tensor) -> float:
    """Measure the expected calibration error over equal bins of confidence (Guo et al. 2017); 0 is calibrated."""
    confidence = logits.softmax(1).amax(1)
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


def count_images(run: Run, subject: Subject, step: int) -> int:
    """Count the images that the statistics are of.

    For running averages and averaged buffers: all that the network was shown until batch norm was frozen.
    """
    if subject == _NO_STATISTICS:
        return 0
    if subject.at_once is not None:
        return subject.at_once
    if isinstance(subject.statistic, Measured):
        size = len(find_population(run, subject).labels)
        return min(subject.statistic.images or run.limit_at(step) or size, size)

    images = len(run.dataset.train.labels)
    last = min(step, run.frozen_from or step)
    if last == run.frozen_from and run.config.freeze_with == "exact":
        return images
    batches = run.batches.per_epoch
    epochs, rest = divmod(last, batches)
    in_epoch = min(batches * run.config.batch_size, images)
    return epochs * in_epoch + rest * run.config.batch_size
