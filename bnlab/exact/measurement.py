"""Exact statistics of a model's data: profile one forward, walk, and check by an ordinary evaluation at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bnlab.batches import count_bytes
from bnlab.borrow import measured
from bnlab.exact.breadth import Walk
from bnlab.exact.checking import check_walk, find_self_dependent
from bnlab.exact.fixed_point import settle
from bnlab.exact.profiling import prepare
from bnlab.exact.ranks import InterleavingError
from bnlab.exact.readers import fetch
from bnlab.exact.task import CALLER, Task, watched
from bnlab.inputs import Values
from bnlab.memory import Budget
from bnlab.moments import Moments
from bnlab.provenance import Check, Cost
from bnlab.warn import warn

Progress = Callable[[], object]


def measure_exactly(
    task: Task, strategy: str, limit: int, progress: Progress
) -> tuple[dict[str, Moments], Cost, Check | None]:
    """Measure each layer while every earlier one normalizes with its own result: breadth-first, or layer by layer.

    Args:
        task: what is measured.
        strategy: "breadth", which goes on layer by layer if forwards cannot take turns or the check fails; "layerwise".
        limit: bytes of activations that may be alive.
        progress: called whenever a layer is finished.

    Returns:
        The moments, the cost, and the last check; the first one, with `held_layer_by_layer`, if that alone failed. None
        if nothing could be compared.
    """
    sizes = [max(1, count_bytes(batch)) for batch in task.data]
    cost = Cost(images=0, batches=len(task.data), forwards=0, input_bytes=sum(sizes), passes=0)
    failed_check: Check | None = None
    with measured(task.model):
        profile = task.ranks.run_together(lambda: prepare(task))
        if strategy == "breadth":
            budget = task.ranks.run_together(lambda: Budget(sizes, profile, limit))
            outcome = _measure_breadth_first(task, budget, cost, progress)
            if outcome.walk is not None:
                return task.fetch(outcome.walk.statistics), cost, outcome.check
            failed_check = outcome.check
            _warn_of_slow_way(task, outcome.reason)
            progress = _do_nothing
    with measured(task.model):  # lent again: forwards that were interrupted may have left something in the model
        walk, check = _measure_layer_by_layer(task, Budget(sizes, None, limit), cost, progress)
        statistics = task.fetch(walk.statistics)
    if failed_check is not None and check is not None and check.held:
        check = replace(failed_check, held_layer_by_layer=True)
    elif check is None:
        check = failed_check
    return statistics, cost, check


def _do_nothing() -> None:
    """Progress was shown in an earlier pass."""


@dataclass(frozen=True)
class _Outcome:
    """Outcome of measuring breadth-first.

    Attributes:
        walk: None if it has to be measured layer by layer.
        check: of the walk; None if there was none.
        reason: why it has to be measured layer by layer.
    """

    walk: Walk | None
    check: Check | None = None
    reason: str = ""


def _measure_breadth_first(task: Task, budget: Budget, cost: Cost, progress: Progress) -> _Outcome:
    try:
        walk, check = _settle_and_check(task, budget, cost, progress)
    except InterleavingError as error:
        _run_alone(task, error.batch)
        return _Outcome(None, reason=str(error))
    if check is None or check.held:
        return _Outcome(walk, check)

    difference = _describe_difference(check)
    cause = "the model keeps state between its layers, or is random"
    return _Outcome(None, check, f"an ordinary forward {difference}: {cause}")


def _run_alone(task: Task, failed_batch: int | None) -> None:
    """Run the batch that has failed while others waited: what it raises alone is an error of the caller's."""

    def run() -> None:
        if failed_batch is not None:
            task.run_batch(failed_batch)

    task.ranks.run_together(run)


def _measure_layer_by_layer(task: Task, budget: Budget, cost: Cost, progress: Progress) -> tuple[Walk, Check | None]:
    walk, check = _settle_and_check(task, budget, cost, progress)
    if check is not None and not check.held:
        warn(
            f"{CALLER}: an ordinary forward of one batch under the result {_describe_difference(check)}; where the "
            "model is random (dropout, noise), draw it in the batches; observers of quantization can be disabled"
        )
    return walk, check


def _settle_and_check(task: Task, budget: Budget, cost: Cost, progress: Progress) -> tuple[Walk, Check | None]:
    """Walk and check; once more if the check fails because of layers that depend on themselves."""
    walk = settle(task, budget, cost, progress)
    cost.peak_bytes = max(cost.peak_bytes, budget.peak)
    task.fetch(walk.statistics)  # raises if moments are not finite, which the check would blame on the model
    check = check_walk(task, walk)
    if check is None or check.held:
        return walk, check

    dependent = _find_dependent(task, walk)
    if dependent:
        walk = settle(task, budget, cost, _do_nothing, dependent)
        check = check_walk(task, walk)
    return walk, check


def _describe_difference(check: Check) -> str:
    if math.isinf(check.off):
        return f"does not call layer {check.layer!r} in its turn, or gives it values that cannot be compared"
    return f"gives layer {check.layer!r} another input (by {check.off:.2%} of σ or of the variance)"


def _find_dependent(task: Task, walk: Walk) -> dict[str, Moments]:
    """Find layers that depend on themselves, and what their buffers held: it may be the statistics that are sought."""
    own = task.ranks.run_together(lambda: find_self_dependent(task, walk) if task.data else [])
    names = [name for rank_names in task.ranks.gather(own) for name in rank_names]
    return fetch({name: task.buffers.read_former(name) for name in dict.fromkeys(names)})


def _warn_of_slow_way(task: Task, reason: str) -> None:
    warn(
        f"{CALLER}: {reason}; measured layer by layer, with forwards of all data up to each of {len(task.layers)} "
        "layers (strategy='layerwise' does so at once)"
    )


def measure_under_batches(task: Task, progress: Progress) -> tuple[dict[str, Moments], Cost]:
    """Measure each layer while all of them normalize with their batch's statistics, and pool the batches' moments."""
    parts: dict[str, list[Any]] = {}  # of each layer the moments of its calls, as the reader has them

    def take(name: str, values: Values) -> None:
        if values.x.numel() == values.x.shape[1]:
            raise ValueError(
                f"{CALLER}: a batch has one value per channel at layer {name!r} and so no variance to normalize "
                "with; use larger batches or upstream='population'"
            )
        parts.setdefault(name, []).append(task.reader.read_exactly(values.x))

    with measured(task.model):
        task.ranks.run_together(lambda: prepare(task))
        for layer in task.layers.values():
            layer.training = True
        with watched(task, task.layers, take):
            task.ranks.run_together(task.run_all)

    task.share_channels()
    pooled = {}
    names = dict.fromkeys(name for own in task.ranks.gather(list(parts)) for name in own)
    for name in names:
        own = task.reader.pool(parts[name], []) if name in parts else None
        pooled[name] = task.complete(name, task.ranks.merge(own))
        progress()

    batches = len(task.data)
    cost = Cost(images=0, batches=batches, forwards=batches, input_bytes=count_bytes(task.data))
    return task.fetch(pooled), cost
