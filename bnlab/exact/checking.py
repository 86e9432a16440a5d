"""The check: an ordinary evaluation under the result has to give each layer what it was measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from bnlab.batches import take_images
from bnlab.borrow import borrowed
from bnlab.exact.breadth import Note, Walk
from bnlab.exact.readers import fetch, fetch_calls
from bnlab.exact.task import Task, watched
from bnlab.inputs import Values
from bnlab.moments import Moments, compare_moments
from bnlab.provenance import Check
from bnlab.reading import Pooled

# Moments of the same images in two evaluations count as the same if they differ by no more: means in σ, variances
# relative.
SAME = 1e-4


def check_walk(task: Task, walk: Walk) -> Check | None:
    """Compare what a walk has noted of some batches with ordinary evaluations of them under its result.

    Returns:
        The first check that failed, else the one with the largest difference; None if nothing was noted.
    """

    def check_own() -> list[Check]:
        return [_check_batch(task, walk, task.data[index], notes) for index, notes in walk.list_notes()]

    checks: list[Check] = []
    for rank_checks in task.ranks.gather(task.ranks.run_together(check_own)):
        checks += rank_checks
    failed = [check for check in checks if not check.held]
    if failed:
        return failed[0]
    return max(checks, key=lambda check: check.off, default=None)


def _check_batch(task: Task, walk: Walk, batch: Any, notes: Sequence[Note]) -> Check:
    """Check a sample of a batch's images, and all of them if the sample shows a difference.

    The sample may show one where there is none: the first rows of a layer's input need not be of the first images.
    """
    expected_of_sample = [(note.name, note.sample_moments) for note in notes]
    check = _compare(task, walk, take_images(batch, task.sample_size), expected_of_sample)
    if check.held:
        return check
    expected = [(note.name, note.moments) for note in notes]
    return _compare(task, walk, batch, expected)


def _compare(task: Task, walk: Walk, batch: Any, expected: Sequence[tuple[str, Pooled]]) -> Check:
    with borrowed(task.model):  # takes back what a sample leaves in the model, such as a queue's place
        calls = record_calls(task, batch)
    names = [name for name, _ in calls]
    expected_names = [name for name, _ in expected]
    for name, expected_name in zip_longest(names, expected_names):
        if name != expected_name:
            return Check(False, expected_name or name, math.inf)

    scales = _find_scales(task, walk)
    worst = 0.0
    failed = None
    for (name, own), (_, noted) in zip(fetch_calls(calls), fetch_calls(expected), strict=True):
        off = max(compare_moments(noted, own, scales[name]))
        worst = max(worst, off)
        if off > SAME and failed is None:
            failed = name
    return Check(failed is None, failed, worst)


def record_calls(task: Task, batch: Any) -> list[tuple[str, Pooled]]:
    """Evaluate a batch, and list the calls of layers in their order, with the moments of what each was given."""
    calls: list[tuple[str, Pooled]] = []

    def note(name: str, values: Values) -> None:
        calls.append((name, task.reader.measure(values.x)))

    with watched(task, task.layers, note):
        task.evaluate(batch)
    return calls


def _find_scales(task: Task, walk: Walk) -> dict[str, Tensor]:
    """Find the variance of each layer's measured channels, which differences are relative to."""
    statistics = fetch(walk.statistics)
    return {name: task.inputs.select_channels(name, moments.var) for name, moments in statistics.items()}


def find_self_dependent(task: Task, walk: Walk) -> list[str]:
    """Find layers whose own statistics change what they are given, as weights that are rounded with the norm folded in.

    For each layer a sample is evaluated under the result, but with the layer's former statistics. None are found if two
    evaluations differ anyway, as in a model that draws random numbers.
    """
    with borrowed(task.model):
        return _find_self_dependent(task, walk, take_images(task.data[0], task.sample_size))


def _find_self_dependent(task: Task, walk: Walk, sample: Any) -> list[str]:
    scales = _find_scales(task, walk)
    before = _record_first_calls(task, sample)
    again = _record_first_calls(task, sample)
    if not before.keys() <= scales.keys():
        return []
    if any(_differ(before[name], again.get(name), scales[name]) for name in before):
        return []

    dependent = []
    for name in before:
        task.buffers.write(name, task.buffers.read_former(name))
        after = _record_first_calls(task, sample)
        task.buffers.write(name, walk.statistics[name])
        if _differ(before[name], after.get(name), scales[name]):
            dependent.append(name)
    return dependent


def _record_first_calls(task: Task, batch: Any) -> dict[str, Moments]:
    """Evaluate a batch, and read the moments of what each layer was given in its first call."""
    first: dict[str, Moments] = {}
    for name, moments in fetch_calls(record_calls(task, batch)):
        first.setdefault(name, moments)
    return first


def _differ(one: Moments, other: Moments | None, scale: Tensor) -> bool:
    return other is None or max(compare_moments(one, other, scale)) > SAME
