"""Layers that are called several times in a forward, or reached late: their statistics depend on themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnlab.exact.breadth import CALLER, Cost, Evaluation
from bnlab.moments import Moments

# Passes are repeated until assumption and measurement agree to this (in σ, and in the logarithm of the variance).
TOLERANCE = 1e-6
PASSES = 100  # at most, or as many as there are layers and some more
_TINY = torch.finfo(torch.float64).tiny
_FORWARDS = 8  # of one batch side by side, at most: they hold as many times the activations


def measure(
    evaluation: Evaluation, batches: Iterable[Any], advance: Callable[[], object], cost: Cost
) -> dict[str, Moments]:
    """Moments of the layers that are reached, in the order in which they were finished first.

    One pass, unless layers are called several times in a forward or reached by some batches after others have finished
    them. Then a pass in which every call of a layer has a forward of its own that waits there; if no call depends on an
    earlier one of the same layer (Siamese networks, crops), that is the result. Either is assumed (pinned), measured,
    and assumed again, until both agree.

    Raises:
        ValueError: they do not agree after many passes, or are not finite.
    """
    found, revisited = evaluation.run({}, advance, batches)
    order, cost.passes = list(found), 1
    if revisited and 1 < evaluation.most_calls <= min(_FORWARDS, len(order) + 2) and not evaluation.runs_again:
        found, late = evaluation.run({}, lambda: None, each_call=True)
        revisited |= late
        cost.passes += 1
    if revisited:
        found = _settle(evaluation, found, revisited, cost)
    evaluation.account(cost)
    return {name: found[name] for name in [*order, *found] if name in found}


def _settle(evaluation: Evaluation, found: dict[str, Moments], revisited: set[str], cost: Cost) -> dict[str, Moments]:
    """Assume, measure, and take what was measured for the next assumption, until both agree.

    A layer is right one pass after all layers before it are, so that a network without loops takes as many passes as it
    has layers, and residuals may grow on the way. Only after that many is the iteration accelerated.
    """
    history: _History | None = None
    while True:
        pinned = {name: found[name] for name in found if name in revisited}
        found, late = evaluation.run(pinned, lambda: None)
        cost.passes += 1
        if late - revisited:
            revisited, history = revisited | late, None
            continue
        seen = {name: evaluation.pool_observed(name) for name in pinned}
        cost.residual = max(distance(pinned[name], moments) for name, moments in seen.items())
        if cost.residual <= TOLERANCE:
            # As assumed, with the count of all calls.
            return found | {name: replace(pinned[name], count=moments.count) for name, moments in seen.items()}
        if cost.passes >= max(PASSES, 2 * len(pinned)):
            raise ValueError(
                f"{CALLER}: layers {', '.join(sorted(pinned))} are called several times or skipped, and did not settle "
                f"in {cost.passes} passes (residual {cost.residual:.1e}); leave them out with layers="
            )
        history = history or _History(pinned.values())
        found |= history.next(pinned, seen, accelerated=cost.passes > len(pinned) + 4)


class _History:
    """Anderson's acceleration of x ← g(x) (Anderson 1965; Walker & Ni 2011), in a window of some passes.

    x: the means in σ of the first pass and the logarithms of the variances of all layers, in one vector. Where a step
    leads far away, the next goes from the best x so far, half as far as the last such step did.
    """

    _WINDOW, _FARTHEST, _WORSE = 6, 5.0, 4.0

    def __init__(self, first: Iterable[Moments]) -> None:
        self._scale = torch.cat([torch.where(moments.var > _TINY, moments.var.sqrt(), 1.0) for moments in first])
        self._assumed: list[Tensor] = []
        self._changes: list[Tensor] = []
        self._best: tuple[float, Tensor, Tensor] | None = None  # the size of its change, x, change
        self._relaxation = 1.0

    def next(self, assumed: dict[str, Moments], seen: dict[str, Moments], accelerated: bool) -> dict[str, Moments]:
        """What to assume next: what was seen, unless it is to be accelerated."""
        names = list(assumed)
        x, g = (self._flatten([moments[name] for name in names]) for moments in (assumed, seen))
        size = float((g - x).abs().max())
        if self._best is None or size < self._best[0]:
            self._best = size, x, g - x
        if not accelerated:
            return seen
        mean, log_var = self._step(x, g - x).view(2, -1)
        sizes = [len(assumed[name].mean) for name in names]
        parts = zip(names, (mean * self._scale).split(sizes), log_var.exp().split(sizes), strict=True)
        return {name: _keep_dead(seen[name], mean, var) for name, mean, var in parts}

    def _step(self, x: Tensor, change: Tensor) -> Tensor:
        assert self._best is not None
        if change.abs().max() > self._WORSE * self._best[0]:
            self._assumed, self._changes = [], []
            self._relaxation /= 2
            return self._best[1] + self._relaxation * self._best[2]
        self._assumed = [*self._assumed, x][-self._WINDOW :]
        self._changes = [*self._changes, change][-self._WINDOW :]
        step = x + self._relaxation * change
        if len(self._assumed) > 1:
            dx, df = (torch.stack(values).diff(dim=0).T for values in (self._assumed, self._changes))
            weights = torch.linalg.lstsq(df, change[:, None], driver="gelsd").solution
            mixed = step - ((dx + self._relaxation * df) @ weights).squeeze(1)
            if (mixed - step).abs().max() < self._FARTHEST:
                return mixed
        return step

    def _flatten(self, moments: list[Moments]) -> Tensor:
        mean = torch.cat([m.mean for m in moments]) / self._scale
        return torch.cat((mean, torch.cat([m.var for m in moments]).clamp(min=_TINY).log()))


def _keep_dead(seen: Moments, mean: Tensor, var: Tensor) -> Moments:
    """What to assume of a layer: of a channel without variance, which has no logarithm, what was seen."""
    alive = seen.var > _TINY
    return Moments(seen.count, torch.where(alive, mean, seen.mean), torch.where(alive, var, seen.var))


def distance(assumed: Moments, seen: Moments) -> float:
    """The larger of the largest differences of the means, in σ, and of the logarithms of the variances."""
    mean = ((seen.mean - assumed.mean).abs() / assumed.var.sqrt()).nan_to_num(0.0, torch.inf)  # 0/0: a dead channel
    var = (seen.var / assumed.var).log().abs().nan_to_num(0.0, torch.inf)
    return float(torch.maximum(mean, var).max())
