"""Exact statistics of a model's data: profiled first, walked, and checked by an ordinary evaluation at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnlab.batches import count_bytes
from bnlab.borrow import measured
from bnlab.exact.breadth import Walk
from bnlab.exact.checking import check_walk, find_self_dependent
from bnlab.exact.fixed_point import settle
from bnlab.exact.inputs import Values
from bnlab.exact.profiling import profile_forward
from bnlab.exact.ranks import Interleaved
from bnlab.exact.readers import fetch
from bnlab.exact.task import CALLER, Task, watched
from bnlab.memory import Budget
from bnlab.moments import Moments
from bnlab.statistics import Check, Cost
from bnlab.warn import warn

Progress = Callable[[], object]


def measure_exactly(
    task: Task, strategy: str, limit: int, progress: Progress
) -> tuple[dict[str, Moments], Cost, Check | None]:
    """Moments of each layer, every earlier layer normalizing with its own: breadth-first, or as slow as it takes."""
    sizes = [max(1, count_bytes(batch)) for batch in task.data]
    cost = Cost(0, len(task.data), 0, sum(sizes), passes=0)
    failed: Check | None = None
    with measured(task.model):
        profile = task.ranks.together(lambda: profile_forward(task))
        if strategy == "breadth":
            budget = task.ranks.together(lambda: Budget(sizes, profile, limit))
            outcome = _measure_breadth_first(task, budget, cost, progress)
            if outcome.walk is not None:
                return _fetch_all(task, outcome.walk), cost, outcome.check
            failed = outcome.check
            _warn_of_slow_way(task, outcome.reason)
            progress = _do_nothing
    with measured(task.model):  # lent again: forwards that were interrupted may have left something in the model
        walk, check = _measure_layer_by_layer(task, Budget(sizes, None, limit), cost, progress)
        return _fetch_all(task, walk), cost, failed or check


def _do_nothing() -> None:
    """Progress was shown in an earlier pass."""


@dataclass(frozen=True)
class _Outcome:
    """What came of the walk.

    Attributes:
        walk: None where it has to be done layer by layer.
        check: of the walk; None where there was none.
        reason: why it has to be done layer by layer.
    """

    walk: Walk | None
    check: Check | None = None
    reason: str = ""


def _measure_breadth_first(task: Task, budget: Budget, cost: Cost, progress: Progress) -> _Outcome:
    """Walk, and check; once more where layers are found to depend on themselves."""
    try:
        walk = settle(task, budget, cost, progress)
        cost.peak_bytes = budget.peak
        _fetch_all(task, walk)  # what is not finite is no matter of the check
        check = check_walk(task, walk)
        if check is None or check.held:
            return _Outcome(walk, check)
        dependent = _find_dependent(task, walk)
        if dependent:
            walk = settle(task, budget, cost, _do_nothing, dependent)
            check = check_walk(task, walk)
            if check is None or check.held:
                return _Outcome(walk, check)
    except Interleaved as error:
        failed = error.batch

        def run_alone() -> None:
            if failed is not None:
                task.run(failed)  # what it raises alone is the caller's

        task.ranks.together(run_alone)
        return _Outcome(None, reason=str(error))

    difference = _describe_difference(check)
    cause = "the model keeps state between its layers, or is random"
    return _Outcome(None, check, f"an ordinary forward {difference}: {cause}")


def _measure_layer_by_layer(task: Task, budget: Budget, cost: Cost, progress: Progress) -> tuple[Walk, Check | None]:
    walk = settle(task, budget, cost, progress)
    check = check_walk(task, walk)
    if check is not None and not check.held:
        dependent = _find_dependent(task, walk)
        if dependent:
            walk = settle(task, budget, cost, _do_nothing, dependent)
            check = check_walk(task, walk)
    if check is not None and not check.held:
        warn(
            f"{CALLER}: an ordinary forward of one batch under the result {_describe_difference(check)}; where the "
            "model is random (dropout, noise), draw it in the batches; observers of quantization can be disabled"
        )
    return walk, check


def _describe_difference(check: Check) -> str:
    if math.isinf(check.off):
        return f"does not call layer {check.layer!r} in its turn, or gives it values that cannot be compared"
    return f"gives layer {check.layer!r} another input (by {check.off:.2%} of σ or of the variance)"


def _find_dependent(task: Task, walk: Walk) -> dict[str, Moments]:
    """Layers that depend on themselves, with what the model held of them, which may be a fixed point."""
    own = task.ranks.together(lambda: find_self_dependent(task, walk) if task.data else [])
    names = [name for found in task.ranks.gather(own) for name in found]
    return fetch({name: task.buffers.read_former(name) for name in dict.fromkeys(names)})


def _warn_of_slow_way(task: Task, reason: str) -> None:
    warn(
        f"{CALLER}: {reason}; measured layer by layer, with forwards of all data up to each of {len(task.layers)} "
        "layers (strategy='layerwise' does so at once)"
    )


def _fetch_all(task: Task, walk: Walk) -> dict[str, Moments]:
    """Bring the moments to the CPU, and check those that could not be checked before."""
    statistics = fetch(walk.statistics)
    for name, moments in statistics.items():
        task.check_moments(name, moments)
    return statistics


def measure_under_batches(task: Task, progress: Progress) -> tuple[dict[str, Moments], Cost]:
    """Every measured layer normalizes with its batch's statistics; moments are pooled."""
    parts: dict[str, list[Any]] = {}  # as the reader has them

    def take(name: str, values: Values) -> None:
        if values.x.numel() == values.x.shape[1]:
            raise ValueError(
                f"{CALLER}: a batch has one value per channel at layer {name!r} and so no variance to normalize "
                "with; use larger batches or upstream='population'"
            )
        parts.setdefault(name, []).append(task.reader.read_exactly(values.x))

    with measured(task.model):
        task.ranks.together(lambda: profile_forward(task))
        for layer in task.layers.values():
            layer.training = True
        with watched(task, task.layers, take):
            task.ranks.together(task.run_all)

    task.share_channels()
    pooled = {}
    names = dict.fromkeys(name for own in task.ranks.gather(list(parts)) for name in own)
    for name in names:
        own = task.reader.pool(parts[name], []) if name in parts else None
        pooled[name] = task.complete(name, task.ranks.merge(own))
        progress()

    statistics = fetch(pooled)
    for name, moments in statistics.items():
        task.check_moments(name, moments)
    return statistics, Cost(0, len(task.data), len(task.data), count_bytes(task.data))
