"""Table `evaluations`: how the network predicts under every estimator's statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.gaps.gap import layer_gaps
from bnlab.harness.artifacts.dataset import Split
from bnlab.harness.artifacts.job_settings import as_list
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.objectives import Objective, compute_metric
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.shifts import describe_corruptions
from bnlab.harness.layer_average import average_one
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.estimates import (
    EXACT,
    IMAGES_AT_ONCE,
    find_population,
    flat_statistics,
    measure_at,
    tabulate,
)
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import METRIC, Table, common, integer, real, text
from bnlab.harness.statistic_kinds import Exact, Measured, NoStatistics
from bnlab.inference import TestTimeStatistics, apply_statistics
from bnlab.statistics.layout import Layout
from bnlab.statistics.network import Statistics, using

_ECE_BINS = 15
_NO_STATISTICS = Subject(NoStatistics(), NoStatistics.name)

_ABOUT = f"""\
How the network predicts under each estimator's statistics. Exact statistics of each `population` are always among them.
A network whose norm has no batch statistics, such as a group norm, has one row for each step, with estimator and
statistics_split `none`, because there is nothing to compare with.

Corruptions change the stored pixels, which are clipped to their range before they are standardized. Random draws for an
image depend on that image alone, and are the same for all networks and strengths. At strengths 1, 2 and 3 they are:

{describe_corruptions()}"""


class Evaluations(Measurement):
    """Table `evaluations`."""

    name: ClassVar[str] = "evaluations"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step estimator momentum statistics_split"),
            "split": text(
                "images that are predicted, see `evaluate_on`: test, val, or train (as many training images as test "
                "has)"
            ),
            "shift": text(
                "how they differ from the training images, see `shifts`: none, a corruption with its strength such as "
                "noise:1, or fonts: with the fonts of the test glyphs"
            ),
        },
        others={
            **common("epoch"),
            "images": integer("images that are predicted"),
            "stat_images": integer("images in the statistics; 0 without statistics"),
            "loss": real("the task's loss; for classification the cross-entropy, in nats"),
            "accuracy": real("share of images that are predicted correctly", is_optional=True),
            "metric": METRIC,
            "ece": real("expected calibration error over 15 equal bins of confidence"),
            "disagreement": real(
                "share of images whose prediction differs from that under exact statistics of the training split "
                "at the same step"
            ),
            "logit_gap": real(
                "root mean square difference from the logits under the same exact statistics, relative to these"
            ),
        },
    )

    def covers(self, norm: Norm) -> bool:
        return True

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose these subjects and always `exact`, of each population, or the network itself, at `accuracy_at`."""
        if not run.has_trace:
            return {_NO_STATISTICS: run.predicted_steps}
        splits = as_list(run.config.population)
        if any(each.is_rule for each in subjects):
            splits = ["train", *splits]  # rules start from exact statistics of the training split

        exact = [Subject(Exact(), split) for split in splits]
        return dict.fromkeys([*exact, *subjects], run.predicted_steps)

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List the steps of `accuracy_at`, and the last one, from which frozen running averages are read."""
        return [*run.predicted_steps, *run.measured_steps[-1:]]

    def measure(
        self, run: Run, subjects: list[Subject], steps: list[int], split: str = "test", shift: str = "none"
    ) -> pd.DataFrame:
        """Measure how a split is predicted under a shift, see `Run.images_of`: a row for each step and subject."""
        every = run.images_of(split, shift)
        estimates = flat_statistics(run, subjects, steps) if run.has_trace else torch.empty(0)
        rows = []
        for k, step in enumerate(steps):
            images = every.sample(run.limit_at(step))
            model = run.model_at(step).eval()
            exact_statistics = measure_at(run, step, EXACT) if run.has_trace else None
            reference = predict(model, images, exact_statistics)
            for s, subject in enumerate(subjects):
                # Exact statistics, and a network that has none to choose, are predicted already.
                logits = reference
                if subject not in (EXACT, _NO_STATISTICS):
                    logits = predict(model, images, run.trace.layout.unflatten(estimates[s, k]), subject)
                counts = {"images": len(images.labels), "stat_images": count_shown(run, subject, step)}
                exact = reference if run.has_trace else None
                if run.config.task.is_own:
                    scores = score_task(run.objective, logits, images, exact)
                else:
                    scores = score_logits(logits, images.labels, exact)
                rows.append({**counts, **scores})

        # Joined by position: `tabulate` has steps and subjects in the order in which rows were appended.
        frame = tabulate(subjects, steps, {"split": split, "shift": shift})
        return pd.concat([frame, pd.DataFrame(rows)], axis=1)


@torch.no_grad()
def predict(model: nn.Module, split: Split, statistics: Statistics | None = None, subject: Subject = EXACT) -> Tensor:
    """Predict a whole split, by the subject's rule if it has one: logits [N, classes] in float64."""
    parts = []
    with ExitStack() as stack:
        if statistics is not None:
            stack.enter_context(using(model, statistics))
        if isinstance(subject.estimator, TestTimeStatistics):
            stack.enter_context(apply_statistics(model, subject.estimator))
        # What is predicted together counts only for rules that read the batch.
        for images in split.images.split(subject.at_once or IMAGES_AT_ONCE):
            # A copy: a forward may standardize in place, and these are a part of what all networks are measured on.
            parts.append(model(images.clone()))
    return torch.cat(parts).double()


def measure_accuracy(
    model: nn.Module, split: Split, statistics: Statistics | None = None, subject: Subject = EXACT
) -> float:
    """Measure the share of a split's images that are predicted right, see `predict`."""
    logits = predict(model, split, statistics, subject)
    return (logits.argmax(1) == split.labels).double().mean().item()


def score_task(task: Objective, output: Tensor, split: Split, exact: Tensor | None) -> dict[str, float]:
    """Compute `loss`, `metric` and `logit_gap` of a task that does not classify; predictions have no confidence."""
    batch = (split.images, split.labels)
    as_computed = output.float()
    return {
        "loss": task.loss(as_computed, batch).item(),
        "accuracy": math.nan,
        "metric": compute_metric(task, as_computed, batch).mean().item(),
        "ece": math.nan,
        "disagreement": math.nan,
        "logit_gap": math.nan if exact is None else _compare(output, exact),
    }


def score_logits(logits: Tensor, labels: Tensor, exact: Tensor | None = None) -> dict[str, float]:
    """Compute `loss`, `accuracy`, `ece` (Guo et al. 2017); the others are NaN without exact logits."""
    is_right = logits.argmax(1) == labels
    confidence = logits.softmax(1).amax(1)
    # Guo et al. count a confidence at the edge of two bins in the lower one.
    bins = (confidence * _ECE_BINS).ceil().long().clamp(1, _ECE_BINS) - 1
    # A bin's mean difference times its share of the images is its sum of differences over all images.
    excess = torch.bincount(bins, weights=confidence - is_right.double(), minlength=_ECE_BINS)
    scores = {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": is_right.double().mean().item(),
        "metric": math.nan,
        "ece": excess.abs().sum().item() / len(labels),
        "disagreement": math.nan,
        "logit_gap": math.nan,
    }
    if exact is not None:
        scores["disagreement"] = (exact.argmax(1) != logits.argmax(1)).double().mean().item()
        scores["logit_gap"] = _compare(logits, exact)
    return scores


def _compare(output: Tensor, exact: Tensor) -> float:
    """Compute the root mean square difference of outputs to those under exact statistics, relative to theirs."""
    return ((output - exact).square().mean() / exact.square().mean()).sqrt().item()


def compare_statistics(model: nn.Module, split: Split, candidates: Sequence[Statistics]) -> list[dict[str, float]]:
    """Evaluate frozen weights under several statistics, of which the first are the reference.

    Returns:
        For each `accuracy`; `accuracy_lost`, that under the reference minus it; and `mean_gap` and `var_gap` to the
        reference as in the table `gaps`, averaged over layers (`average_one`).
    """
    layout = Layout.of(candidates[0])
    reference = layout.flatten(candidates[0])
    compared: list[dict[str, float]] = []
    for statistics in candidates:
        accuracy = measure_accuracy(model, split, statistics)
        expected = compared[0]["accuracy"] if compared else accuracy
        of_layers = layer_gaps(layout, reference, layout.flatten(statistics))
        mean_gap, var_gap, _ = [average_one(gaps) for gaps in of_layers.tolist()]
        values = {"accuracy": accuracy, "accuracy_lost": expected - accuracy}
        compared.append({**values, "mean_gap": mean_gap, "var_gap": var_gap})
    return compared


def count_shown(run: Run, subject: Subject, step: int) -> int:
    """Count the images that statistics were shown; running averages are shown none once batch norm is frozen."""
    if subject == _NO_STATISTICS:
        return 0
    if subject.at_once is not None:
        return subject.at_once
    if isinstance(subject.estimator, Measured):
        size = len(find_population(run, subject).labels)
        count = subject.estimator.images
        if count is None:
            count = run.limit_at(step)
        return size if count is None else min(count, size)

    images = len(run.dataset.train.labels)
    last = min(step, run.frozen_from or step)
    # Freezing has put statistics of the whole training split into the buffers.
    if last == run.frozen_from and run.config.freeze_with == "exact":
        return images
    batches = run.batches.per_epoch
    epochs, rest = divmod(last, batches)
    # An epoch has fewer images than the split where its last batch is dropped, and fewer than full batches where it is
    # kept.
    in_epoch = min(batches * run.config.batch_size, images)
    return epochs * in_epoch + rest * run.config.batch_size
