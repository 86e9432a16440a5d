"""Score images under several statistics, or with something undone, by their labels or by the caller's metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.common.precision import widen
from bnlab.common.scores import read_values
from bnlab.doctor.evidence.case import has_bad_values, measure_distance, read_all_buffers
from bnlab.doctor.evidence.labels import has_only_shares
from bnlab.doctor.evidence.scores import (
    Evaluate,
    Scores,
    are_mixed,
    find_reading,
    measure_likelihood,
    score_batch,
    score_constants,
)
from bnlab.doctor.evidence.setup import find_labels
from bnlab.doctor.undo import Apply, normalize_each_batch
from bnlab.exact.task import Task, watched
from bnlab.model.batches import count_images, take_images
from bnlab.model.borrow import measured
from bnlab.model.layers import get_running_buffers
from bnlab.statistics.network import Statistics, using

_ENOUGH = 10  # images, of which shuffled ones are hardly ever all of one class


class Judged(NamedTuple):
    """How each image does, with something undone or not; by each batch, where there are neither labels nor a metric.

    Attributes:
        scores: float64 [N]; without labels, minus the gap that is left.
        likelihoods: of the labels, float64 [N]; by a metric or without labels they are the scores again.
    """

    scores: Tensor
    likelihoods: Tensor


Judge = Callable[[Sequence[Any], Apply | None], Judged]
"""Judges batches under an undo."""


def score(
    task: Task,
    exact: Statistics,
    evaluate: Evaluate | None,
    batch_values: Sequence[Tensor | None] = (),
) -> Scores | None:
    """Score the images under running and exact statistics; batch statistics were scored when they were observed."""
    ranks = task.ranks
    values = ranks.run_together(lambda: _score_local_images(task, exact, evaluate))
    parts = [part for part in ranks.gather(values) if part]
    if not parts:
        return None
    joined = {kind: torch.cat([part[kind] for part in parts]) for kind in ("running", "exact")}

    under_batches = [part for part in batch_values if part is not None]
    if under_batches:
        joined["batch"] = torch.cat(under_batches).cpu()
    if evaluate is not None:
        return Scores(joined, _are_shares(joined))

    commonest = None
    sums = _count_classes(task)
    if _choose_only_class(task, sums) is not None:
        return None
    # Labels that are no classes have no commonest one. Where few are all of one class, always naming it cannot be
    # beaten.
    if sums is not None and len(sums) > 1:
        commonest = max(sums.values()) / len(joined["running"])
    labels = find_labels(task, task.data[0])
    by_class = labels is not None and labels.dim() > 1
    return Scores(joined, _are_shares(joined), commonest, by_class)


def find_only_class(task: Task) -> int | None:
    """Find the class that all labels are of; None if there are several, or hardly any labels.

    Images that are sorted by class, or that have a number in the place of a label, say nothing of a network: whatever
    moves its predictions towards that class scores better.
    """
    return _choose_only_class(task, _count_classes(task))


def _choose_only_class(task: Task, sums: Counter[int] | None) -> int | None:
    """Choose the class of all labels, whose `_count_classes` are given; all processes call it together."""
    images = sum(task.ranks.gather(sum(map(count_images, task.data))))
    labels = find_labels(task, task.data[0])
    # A mask that is all background says what it says of every position.
    if sums is None or len(sums) != 1 or images < _ENOUGH or labels is None or labels.dim() > 1:
        return None
    return next(iter(sums))


def _count_classes(task: Task) -> Counter[int] | None:
    """Sum over the images of all processes what naming each class would score; None where labels are no classes."""
    constants = task.ranks.gather(_score_constants(task))
    return None if None in constants else sum(constants, Counter())


def score_training(task: Task) -> float | None:
    """Score the training batches by the model as it is, in eval mode; None where labels do not say by shares.

    Their labels may be of another kind than those of the images: smoothed, or mixed. Mixed images are no test.
    """
    labels = [each for each in (find_labels(task, batch) for batch in task.data) if each is not None]
    if any(map(are_mixed, labels)):
        return None
    are_classes = all(part.dim() == 1 and not part.is_floating_point() for part in labels)
    if labels and are_classes and sum(map(len, labels)) >= _ENOUGH and len(score_constants(labels)) == 1:
        return None
    reading = find_reading([], labels)
    if task.reading is not None:
        reading = replace(reading, least=task.reading.least)  # which is of outputs, not of labels
    values = score_by_labels(replace(task, reading=reading))
    if values is None or not _are_shares({"running": values}):
        return None
    return float(values.mean())


def add_batch_statistics(scores: Scores, task: Task, evaluate: Evaluate) -> Scores:
    """Add how the caller's metric scores while each batch norm normalizes by what it is given in each call."""
    under_batches = score_by_metric(task, evaluate, normalize_each_batch(task.layers))
    _require_as_many(under_batches, scores.values["running"], task.caller)
    values = {**scores.values, "batch": under_batches}
    return Scores(values, _are_shares(values))


def score_by_metric(task: Task, evaluate: Evaluate, apply: Apply | None = None, must_be_finite: bool = False) -> Tensor:
    """Score by the caller's own metric, with something undone or not: float64 [N]."""
    with measured(task.model), ExitStack() as stack:
        if apply is not None:
            apply(task.root, stack)
        return read_values(evaluate(task.model), task.caller, must_be_finite)


def score_by_labels(task: Task, apply: Apply | None = None, has_likelihoods: bool = False) -> Tensor | None:
    """Score each image by its label, in eval mode, with something undone or not; None where labels do not say.

    Returns:
        float64 [1, N]; or [2, N] with the likelihoods of the labels, or scores again where outputs are no classes.
    """
    parts = []
    with measured(task.model), ExitStack() as stack:
        if apply is not None:
            apply(task.root, stack)
        for batch in task.data:
            output = task.evaluate(batch)
            labels = find_labels(task, batch)
            scores = score_batch(output, labels, task.reading)
            if scores is None:
                return None
            rows = [scores]
            if has_likelihoods:
                likelihoods = measure_likelihood(output, labels)
                rows.append(scores if likelihoods is None else likelihoods)
            parts.append(torch.stack(rows))
    return torch.cat(parts, 1).cpu()  # all at once: nobody waits for a device after each batch


def _score_local_images(task: Task, exact: Statistics, evaluate: Evaluate | None) -> dict[str, Tensor]:
    """Score this process's images under running and exact statistics; empty where labels do not say."""
    if evaluate is not None:
        return _score_by(task, evaluate, exact)
    running = score_by_labels(task)
    if running is None:
        return {}
    with using(task.model, exact):
        under_exact = score_by_labels(task)
    assert under_exact is not None
    return {"running": running[0], "exact": under_exact[0]}


def _score_by(task: Task, evaluate: Evaluate, exact: Statistics) -> dict[str, Tensor]:
    """Score by the caller's own metric: NaN where it fails under buffers that are not finite or negative.

    Raises:
        ValueError: it does not return values of the same images each time.
    """
    is_broken = any(has_bad_values(buffers) for buffers in read_all_buffers(task.layers).values())
    # Exact statistics come first: a metric that fails under these is at fault itself.
    with using(task.model, exact), torch.no_grad():
        under_exact = read_values(evaluate(task.model), task.caller)
    try:
        running = score_by_metric(task, evaluate, must_be_finite=not is_broken)
    except (ValueError, RuntimeError):
        if not is_broken:
            raise
        running = torch.full_like(under_exact, math.nan)  # metrics that have just worked may refuse NaN
    _require_as_many(running, under_exact, task.caller)
    return {"running": running, "exact": under_exact}


def _require_as_many(values: Tensor, first: Tensor, caller: str) -> None:
    """ValueError unless the caller's metric has returned as many values as when it was called first."""
    if len(values) != len(first):
        raise ValueError(
            f"{caller}: evaluate returned {len(first)} values, then {len(values)}; return a value for each image, of "
            "the same images each time"
        )


def _are_shares(values: Mapping[str, Tensor]) -> bool:
    return all(has_only_shares(part) for part in values.values())


def _score_constants(task: Task) -> Counter[int] | None:
    """Sum over images what always naming each class would score; None where labels are no classes."""
    labels = [find_labels(task, batch) for batch in task.data]
    whole = [part for part in labels if part is not None and not part.is_floating_point()]
    return Counter(score_constants(whole)) if len(whole) == len(labels) else None


def choose_judge(task: Task, evaluate: Evaluate | None, has_scores: bool) -> tuple[Judge, bool]:
    """Choose by what undos are judged, and say whether by labels or a metric."""

    def judge_by_metric(batches: Sequence[Any], apply: Apply | None) -> Judged:
        assert evaluate is not None
        # The metric runs images of its own, whatever the batches are.
        values = _make_finite(score_by_metric(task, evaluate, apply))
        # A metric has no likelihood, so that undos are ranked by its values.
        return Judged(values, values)

    def judge_by_labels(batches: Sequence[Any], apply: Apply | None) -> Judged:
        values = score_by_labels(task.on(batches), apply, has_likelihoods=True)
        assert values is not None
        scores, likelihoods = _make_finite(values)
        return Judged(scores, likelihoods)

    if evaluate is not None:
        return judge_by_metric, True
    # Two images show whether labels and outputs belong together. There are scores only if all batches have labels.
    if has_scores and score_by_labels(task.on([take_images(task.data[0], 2)])) is not None:
        return judge_by_labels, True
    return partial(_judge_by_gap, task), False


def _make_finite(values: Tensor) -> Tensor:
    """Replace what is not finite: no undo can be ranked by NaN, and a very small number makes it the last."""
    return values.nan_to_num(nan=-1e6, posinf=1e6, neginf=-1e6)


def _judge_by_gap(task: Task, batches: Sequence[Any], apply: Apply | None) -> Judged:
    """Measure the gap that each batch leaves under an undo: −Σ log(1 + gap) over layers."""

    def take(name: str, x: Tensor) -> None:
        given = task.reader.measure(x)
        layer = task.layers[name]
        mean, var = get_running_buffers(layer)
        mean = widen(mean).to(given.mean)
        var = widen(var).to(given.mean)
        # An undo may propose a negative variance, whose logarithm would make all layers' sum NaN.
        gap = measure_distance(mean, var.clamp(min=0), given, layer.eps)
        # The logarithm keeps one layer that is far off from outweighing all others.
        gaps[-1] = gaps[-1] + gap.log1p().to(gaps[-1].device)  # a network may be spread over several

    gaps: list[Tensor] = []
    with measured(task.root), ExitStack() as stack, watched(task, task.layers, take):
        if apply is not None:
            apply(task.root, stack)
        for batch in batches:
            gaps.append(widen(torch.zeros((), device=task.device)))
            task.evaluate(batch)
    values = -torch.stack(gaps).cpu()
    return Judged(values, values)
