"""Layers whose statistics depend on themselves: called several times, or with their own buffers in their input.

Their statistics are a fixed point: given to a walk, they are what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bnlab.batches import list_tensors
from bnlab.exact.breadth import Walk
from bnlab.exact.readers import fetch
from bnlab.exact.task import CALLER, Task
from bnlab.layers import join_names
from bnlab.memory import Budget
from bnlab.moments import Moments, compare_moments
from bnlab.reading import Pooled
from bnlab.statistics import Cost
from bnlab.warn import warn

_SETTLED = 1e-6  # of σ and relative variance, between what was given and what was found
_SMALL = 0.1  # a remainder that is warned of, and no reason to refuse
_PLAIN_TRIALS = 4  # more than there are such layers: plain iteration settles a chain of them in as many as there are
_MOST_TRIALS = 300
_PATIENCE = 30  # trials that come no nearer
_DAMPING = 0.3
_LEAST_DAMPING = 0.02


def settle(
    task: Task,
    budget: Budget,
    cost: Cost,
    progress: Callable[[], object],
    dependent: Mapping[str, Moments] | None = None,
) -> Walk:
    """Walk, and again where layers depend on themselves, with what was found given, until it is what is found.

    Plain iteration comes first; where it does not settle, a part of each change is made.

    Args:
        task, budget: see `Walk`.
        cost: its passes and forwards are counted.
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
        found = _fetch(task, walk, names)
        if given.keys() != found.keys():
            restarts += 1
            if restarts > len(task.layers) + _PLAIN_TRIALS:
                raise ValueError(_describe_failure(found))
            given = found
            search = _Search()
            continue
        remainder = max((max(compare_moments(given[name], found[name])) for name in found), default=0.0)
        if remainder < _SETTLED:
            return walk
        next_given = search.advance(_Trial(remainder, given, found, walk))
        if next_given is None:
            return _take_remainder(task, search.best)
        given = next_given


@dataclass
class _Trial:
    """What was given to a walk, and what it found."""

    remainder: float
    given: Mapping[str, Moments]
    found: Mapping[str, Moments]
    walk: Walk

    def mix(self, damping: float) -> dict[str, Moments]:
        """Go a part of the way from what was given to what was found."""
        mixed = {}
        for name, moments in self.found.items():
            given = self.given[name]
            mean = given.mean + damping * (moments.mean - given.mean)
            var = given.var + damping * (moments.var - given.var)
            mixed[name] = Moments(moments.count, mean, var)
        return mixed


class _Search:
    """The way to a fixed point: whole steps at first, then smaller ones."""

    def __init__(self) -> None:
        self.best: _Trial | None = None
        self._damping = 1.0
        self._trials = 0
        self._since_best = 0

    def advance(self, trial: _Trial) -> dict[str, Moments] | None:
        """What to give next; None where no more is to be expected."""
        self._trials += 1
        self._since_best += 1
        if self.best is None or trial.remainder < self.best.remainder:
            self.best = trial
            self._since_best = 0

        if self._damping == 1.0:
            if self._trials < len(trial.found) + _PLAIN_TRIALS:
                return trial.mix(1.0)
            self._damping = _DAMPING
            return self.best.mix(self._damping)
        if trial.remainder > 1.5 * self.best.remainder and self._damping > _LEAST_DAMPING:
            self._damping = max(_LEAST_DAMPING, self._damping / 2)  # it does not contract: back, with smaller steps
            return self.best.mix(self._damping)
        if self._since_best > _PATIENCE or self._trials > _MOST_TRIALS:
            return None
        return trial.mix(self._damping)


def _choose_noted(task: Task) -> Collection[int]:
    """Batches that are checked: the first, one in the middle, and one of another shape."""
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
    """Shapes without the number of images."""
    return [tensor.shape[1:] for tensor in list_tensors(batch)]


def _fetch(task: Task, walk: Walk, names: Collection[str]) -> dict[str, Moments]:
    found = fetch({name: pooled for name, pooled in walk.statistics.items() if name in names})
    for name, moments in found.items():
        task.check_moments(name, moments)
    return found


def _take_remainder(task: Task, best: _Trial | None) -> Walk:
    """The walk that came nearest, with what was given to it."""
    assert best is not None  # there was a trial
    if best.remainder > _SMALL:
        raise ValueError(_describe_failure(best.found))
    warn(
        f"{CALLER}: the statistics of {join_names(best.found)} depend on themselves and do not settle fully: an "
        f"evaluation under them gives others, by {best.remainder:.2%} of σ or of the variance"
    )
    for name, moments in best.given.items():  # under which all others were measured
        best.walk.statistics[name] = Pooled(best.walk.statistics[name].count, moments.mean, moments.var)
    for name, pooled in best.walk.statistics.items():
        task.buffers.write(name, pooled)
    return best.walk


def _describe_failure(names: Collection[str]) -> str:
    return (
        f"{CALLER}: the statistics of {join_names(names)}, which depend on themselves (called several times, or part "
        "of their own input), do not settle; leave them out with layers="
    )


def _do_nothing() -> None:
    """Progress was shown in the first pass."""
