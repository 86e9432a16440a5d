"""Exact statistics of a model's data: see how a forward runs, walk until nothing changes, and check the result.

Most networks need one walk. Layers that depend on themselves are called several times, or have their own buffers in
their input: their statistics are a fixed point, and a walk to which they are given measures them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bnlab.batches import count_bytes
from bnlab.borrow import measured
from bnlab.exact.samples import check_walk, choose_noted, find_self_dependent, prepare
from bnlab.exact.task import CALLER, InterleavingError, Task, watched
from bnlab.exact.walk import Walk
from bnlab.layers import Values, join_names
from bnlab.memory import Budget
from bnlab.moments import Moments, compare_moments
from bnlab.provenance import Check, Cost
from bnlab.reading import Pooled
from bnlab.warn import warn

Progress = Callable[[], object]

# Differences between given and measured statistics: of means in σ, of variances relative.
_SETTLED = 1e-6  # the search ends here
_SMALL = 0.1  # up to here a remainder is warned of; a larger one is refused

# Plain iteration settles a chain of n such layers in n trials. It gets so many more before changes are damped.
_PLAIN_TRIALS = 4
_MOST_TRIALS = 300
_PATIENCE = 30  # trials without an improvement before the search is given up
_DAMPING = 0.3  # share of each change that is made, once plain iteration has not settled
_LEAST_DAMPING = 0.02


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
            try:
                walk, failed_check = _settle_and_check(task, budget, cost, progress)
                if failed_check is None or failed_check.held:
                    return task.fetch(walk.statistics), cost, failed_check
                cause = "the model keeps state between its layers, or is random"
                reason = f"an ordinary forward {_describe_difference(failed_check)}: {cause}"
            except InterleavingError as error:
                _run_alone(task, error.batch)
                reason = str(error)
            warn(
                f"{CALLER}: {reason}; measured layer by layer, with forwards of all data up to each of "
                f"{len(task.layers)} layers (strategy='layerwise' does so at once)"
            )
            progress = _do_nothing

    with measured(task.model):  # lent again: forwards that were interrupted may have left something in the model
        walk, check = _settle_and_check(task, Budget(sizes, None, limit), cost, progress)
        if check is not None and not check.held:
            warn(
                f"{CALLER}: an ordinary forward of one batch under the result {_describe_difference(check)}; where the "
                "model is random (dropout, noise), draw it in the batches; observers of quantization can be disabled"
            )
        statistics = task.fetch(walk.statistics)
    if failed_check is not None and check is not None and check.held:
        check = replace(failed_check, held_layer_by_layer=True)
    return statistics, cost, check or failed_check


def _do_nothing() -> None:
    """Progress was shown in an earlier pass."""


def _run_alone(task: Task, failed_batch: int | None) -> None:
    """Run the batch that has failed while others waited: what it raises alone is an error of the caller's."""

    def run() -> None:
        if failed_batch is not None:
            task.evaluate(task.data[failed_batch])

    task.ranks.run_together(run)


def _settle_and_check(task: Task, budget: Budget, cost: Cost, progress: Progress) -> tuple[Walk, Check | None]:
    """Walk and check; once more if the check fails because of layers that depend on themselves."""
    walk = _settle(task, budget, cost, progress, {})
    cost.peak_bytes = max(cost.peak_bytes, budget.peak)
    task.fetch(walk.statistics)  # raises if moments are not finite, which the check would blame on the model
    check = check_walk(task, walk)
    if check is None or check.held:
        return walk, check

    dependent = _find_dependent(task, walk)
    if dependent:
        walk = _settle(task, budget, cost, _do_nothing, dependent)
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
    return {name: task.read_former(name) for name in names}


def _settle(
    task: Task,
    budget: Budget,
    cost: Cost,
    progress: Progress,
    dependent: Mapping[str, Moments],
) -> Walk:
    """Walk until the statistics that self-dependent layers were given are those that the walk measures.

    Without such layers one walk is enough. With some, each walk is given what the walk before has measured. If that
    does not settle, it is given a value between what was given before and what was measured.

    Args:
        task, budget: see `Walk`.
        cost: its passes and forwards are counted up.
        progress: called whenever a layer is finished in the first pass.
        dependent: layers that are known to depend on themselves, with statistics to begin from.

    Raises:
        ValueError: there seems to be no fixed point.

    Warns:
        RuntimeWarning: a small remainder is left.
    """
    noted = choose_noted(task)
    given = dependent
    search = _Search()
    restarts = 0
    while True:
        walk = Walk(task, budget, given, noted).go(progress)
        cost.forwards += walk.forwards
        cost.passes += 1
        progress = _do_nothing

        names = set().union(given, *task.ranks.gather(walk.revisited))
        measured = task.fetch({name: pooled for name, pooled in walk.statistics.items() if name in names})
        if given.keys() != measured.keys():  # the walk has shown that further layers depend on themselves
            restarts += 1
            if restarts > len(task.layers) + _PLAIN_TRIALS:
                raise ValueError(_describe_failure(measured))
            given = measured
            search = _Search()
            continue

        differences = [max(compare_moments(given[name], measured[name])) for name in measured]
        remainder = max(differences, default=0.0)
        if remainder < _SETTLED:
            return walk
        next_given = search.choose_next(_Trial(remainder, given, measured, walk))
        if next_given is None:
            return _take_remainder(task, search.best)
        given = next_given


@dataclass
class _Trial:
    """One walk of the search.

    Attributes:
        remainder: the largest difference between `given` and `measured`.
        given: statistics of self-dependent layers that were given to the walk.
        measured: what the walk has measured of these layers.
        walk: the walk.
    """

    remainder: float
    given: Mapping[str, Moments]
    measured: Mapping[str, Moments]
    walk: Walk

    def mix(self, damping: float) -> dict[str, Moments]:
        """Go a part of the way from what was given to what was measured."""
        mixed = {}
        for name, moments in self.measured.items():
            given = self.given[name]
            mean = given.mean + damping * (moments.mean - given.mean)
            var = given.var + damping * (moments.var - given.var)
            mixed[name] = Moments(moments.count, mean, var)
        return mixed


@dataclass
class _Search:
    """The search for a fixed point: with whole steps first, then with smaller ones."""

    best: _Trial | None = None
    _damping: float = 1.0
    _trials: int = 0
    _since_best: int = 0

    def choose_next(self, trial: _Trial) -> dict[str, Moments] | None:
        """Choose what to give to the next walk; None if the search is given up."""
        self._trials += 1
        self._since_best += 1
        if self.best is None or trial.remainder < self.best.remainder:
            self.best = trial
            self._since_best = 0

        if self._damping == 1.0:
            if self._trials < len(trial.measured) + _PLAIN_TRIALS:
                return trial.mix(1.0)
            self._damping = _DAMPING
            return self.best.mix(self._damping)

        has_grown = trial.remainder > 1.5 * self.best.remainder
        if has_grown and self._damping > _LEAST_DAMPING:  # go back to the best, and on with smaller steps
            self._damping = max(_LEAST_DAMPING, self._damping / 2)
            return self.best.mix(self._damping)
        if self._since_best > _PATIENCE or self._trials > _MOST_TRIALS:
            return None
        return trial.mix(self._damping)


def _take_remainder(task: Task, best: _Trial | None) -> Walk:
    """Take the walk with the smallest remainder, and as its statistics those that were given to it.

    Warns of the remainder, or raises ValueError if it is large.
    """
    assert best is not None  # there was a trial
    if best.remainder > _SMALL:
        raise ValueError(_describe_failure(best.measured))
    warn(
        f"{CALLER}: the statistics of {join_names(best.measured)} depend on themselves and do not settle fully: an "
        f"evaluation under them gives others, by {best.remainder:.2%} of σ or of the variance"
    )
    for name, moments in best.given.items():  # all other layers were measured under these
        best.walk.statistics[name] = Pooled(best.walk.statistics[name].count, moments.mean, moments.var)
    for name, pooled in best.walk.statistics.items():
        task.write(name, pooled)
    return best.walk


def _describe_failure(names: Collection[str]) -> str:
    return (
        f"{CALLER}: the statistics of {join_names(names)}, which depend on themselves (called several times, or part "
        "of their own input), do not settle; measure the others: name them in layers= of population_statistics or "
        "recalibrate"
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
        parts.setdefault(name, []).append(task.reader.measure(values.x))

    with measured(task.model):
        task.ranks.run_together(lambda: prepare(task))
        for layer in task.layers.values():
            layer.training = True
        with watched(task, task.layers, take):
            task.ranks.run_together(task.run_all)

    pooled = {}
    names = dict.fromkeys(name for own in task.ranks.gather(list(parts)) for name in own)
    for name in names:
        own = task.reader.pool(parts[name], []) if name in parts else None
        pooled[name] = task.merge(name, own)
        progress()

    batches = len(task.data)
    cost = Cost(images=0, batches=batches, forwards=batches, input_bytes=count_bytes(task.data))
    return task.fetch(pooled), cost
