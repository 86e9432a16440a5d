"""The check: an ordinary evaluation under the result has to give each layer what it was measured on."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab.exact.fixed_point import SAME
from bnlab.exact.task import Task, looking_at
from bnlab.exact.walk import Walk, Way
from bnlab.model.borrow import measured
from bnlab.model.calls import NormCall, NormCallMode
from bnlab.model.layers import has_own_forward
from bnlab.model.reading import DeviceMoments
from bnlab.statistics.moments import Moments, compare_moments, fetch
from bnlab.statistics.provenance import Check

_SHARE = 8  # one batch of so many is checked


def choose_checked(task: Task) -> list[int]:
    """Choose the batches that are checked: the first, the last, and others that are drawn, up to an eighth of all.

    Of few batches one is drawn all the same.
    """
    count = len(task.data)
    if not count:
        return []
    if task.checks_all:
        return list(range(count))
    between = range(1, count - 1)
    drawn = max(1, count // _SHARE - 2)
    # Drawn by a generator of its own: the caller's goes on as if nothing had been measured.
    chosen = random.Random(0).sample(between, min(drawn, len(between)))
    return sorted({0, count - 1, *chosen})


def check_walk(task: Task, walk: Walk, statistics: Mapping[str, Moments]) -> Check | None:
    """Evaluate the batches of which a walk has kept the moments under its result, `statistics`, one after the other.

    Whole batches are evaluated: what forwards that take turns can spoil need not show in their first rows. The first of
    them is laid out in memory as the caller gave it, since the walk may have turned it for speed, which a forward that
    counts in strides reads as other pixels.

    Returns:
        The first check that failed, else the one with the largest difference; None if no batch was to be checked.
    """

    def check_all() -> list[Check]:
        checked = [way for way in walk.ways if way.is_checked]
        return [
            _check(task, statistics, way, *_evaluate(task, way.index, is_as_given=place == 0))
            for place, way in enumerate(checked)
        ]

    with measured(task.root):
        for name, moments in statistics.items():
            task.write(name, moments)
        of_rank = task.ranks.run_together(check_all)

    checks: list[Check] = [check for rank_checks in task.ranks.gather(of_rank) for check in rank_checks]
    failed = [check for check in checks if not check.held]
    if failed:
        return failed[0]
    return max(checks, key=lambda check: check.off, default=None)


class _Evaluated(NamedTuple):
    """A layer's call in an ordinary evaluation.

    Attributes:
        name: the layer's.
        moments: of what it normalizes.
        eps: the layer's, which it adds to the variance.
        tolerance: the difference up to which other moments are the same.
    """

    name: str
    moments: DeviceMoments
    eps: float
    tolerance: float


def _evaluate(task: Task, index: int, is_as_given: bool) -> tuple[list[_Evaluated], Counter[str]]:
    """Evaluate a batch; list the calls of layers, and count the operations that read their averages."""
    calls: list[_Evaluated] = []
    operations: Counter[str] = Counter()

    def count(call: NormCall) -> None:
        if call.name is not None and call.x.numel():
            operations[call.name] += 1

    def note(name: str, x: Tensor) -> None:
        # Convolutions of another layout in memory add up in another order, and round what they give to the type of `x`.
        # The roundings of the layers up to here are independent, and add up to the root of their number.
        eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
        rounding = eps * math.sqrt(len(calls) + 1)
        calls.append(_Evaluated(name, task.reader.measure(x), task.layers[name].eps, max(SAME, rounding)))

    with looking_at(task, task.layers, note), NormCallMode(task.layers, count):
        task.evaluate(task.data[index], is_as_given)
    return calls, operations


def _check(
    task: Task, statistics: Mapping[str, Moments], way: Way, evaluated: Sequence[_Evaluated], operations: Counter[str]
) -> Check:
    """Compare a batch's calls in an ordinary evaluation with those in a walk, layer by layer."""
    walked: dict[str, list[DeviceMoments]] = {}
    for name, moments in way.assumed:
        walked.setdefault(name, []).append(moments)
    for name, kept in way.moments.items():
        assert kept is not None  # of a batch that is checked
        walked[name] = [kept]

    by_layer: dict[str, list[_Evaluated]] = {}
    for call in evaluated:
        by_layer.setdefault(call.name, []).append(call)
    for name in {**by_layer, **walked}:
        times = len(by_layer.get(name, []))
        if times != len(walked.get(name, [])):
            return Check(False, name, math.inf)
        # A layer of torch's runs one operation a call. What is more reads its averages past it.
        if operations[name] > times and not has_own_forward(task.layers[name]):
            return Check(False, name, math.inf)

    calls = [call for of_layer in by_layer.values() for call in of_layer]
    now = fetch([call.moments for call in calls])
    before = fetch([moments for name in by_layer for moments in walked[name]])
    worst = 0.0
    for call, own, other in zip(calls, now, before, strict=True):
        off = compare_moments(other, own, _choose_scale(statistics[call.name], call.eps))
        if not all(each <= call.tolerance for each in off):  # NaN is not
            return Check(False, call.name, max(off))
        worst = max(worst, *off)
    return Check(True, None, worst)


def _choose_scale(whole: Moments, eps: float) -> Tensor:
    """Choose the variance [C] by which differences count: that of all batches, with eps, as the layer divides by it.

    A channel may be constant within one batch, or in all, and what rounding leaves of its variance would then count as
    a large difference.
    """
    of_constants = (torch.finfo(torch.float32).eps * whole.mean).square()
    return whole.var + eps + of_constants
