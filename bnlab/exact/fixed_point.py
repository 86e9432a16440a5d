"""Layers whose statistics depend on themselves: called several times, or with their own buffers in their input.

Their statistics are a fixed point: a walk to which they are given measures them again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bnlab.batches import list_tensors
from bnlab.exact.breadth import Walk
from bnlab.exact.task import CALLER, Task
from bnlab.layers import join_names
from bnlab.memory import Budget
from bnlab.moments import Moments, compare_moments
from bnlab.provenance import Cost
from bnlab.reading import Pooled
from bnlab.warn import warn

# Differences between given and measured statistics: of means in σ, of variances relative.
_SETTLED = 1e-6  # the search ends here
_SMALL = 0.1  # up to here a remainder is warned of; a larger one is refused

# Plain iteration settles a chain of n such layers in n trials. It gets so many more before changes are damped.
_PLAIN_TRIALS = 4
_MOST_TRIALS = 300
_PATIENCE = 30  # trials without an improvement before the search is given up
_DAMPING = 0.3  # share of each change that is made, once plain iteration has not settled
_LEAST_DAMPING = 0.02


def settle(
    task: Task,
    budget: Budget,
    cost: Cost,
    progress: Callable[[], object],
    dependent: Mapping[str, Moments] | None = None,
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
    noted = _choose_noted(task)
    given: Mapping[str, Moments] = dict(dependent or {})
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
        next_given = search.find_next(_Trial(remainder, given, measured, walk))
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


class _Search:
    """The search for a fixed point: with whole steps first, then with smaller ones."""

    def __init__(self) -> None:
        self.best: _Trial | None = None
        self._damping = 1.0
        self._trials = 0
        self._since_best = 0

    def find_next(self, trial: _Trial) -> dict[str, Moments] | None:
        """Find what to give to the next walk; None if the search is given up."""
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


def _choose_noted(task: Task) -> Collection[int]:
    """Choose the batches that are checked: the first, one in the middle, and the first of another shape."""
    if not task.data:
        return ()
    noted = {0, len(task.data) // 2}
    usual = _list_shapes(task.data[0])
    for index, batch in enumerate(task.data):
        if _list_shapes(batch) != usual:
            noted.add(index)
            break
    return noted


def _list_shapes(batch: Any) -> list[torch.Size]:
    """List the shapes of a batch's tensors, without the number of images."""
    return [tensor.shape[1:] for tensor in list_tensors(batch)]


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
        task.buffers.write(name, pooled)
    return best.walk


def _describe_failure(names: Collection[str]) -> str:
    return (
        f"{CALLER}: the statistics of {join_names(names)}, which depend on themselves (called several times, or part "
        "of their own input), do not settle; measure the others: name them in layers= of population_statistics or "
        "recalibrate"
    )


def _do_nothing() -> None:
    """Progress was shown in the first pass."""
