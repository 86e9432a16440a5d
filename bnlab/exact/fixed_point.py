"""The statistics of layers that are called several times in a forward depend on themselves: they are a fixed point."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from bnlab.statistics.moments import Moments, compare_moments
from bnlab.statistics.provenance import Check

SAME = 1e-4  # difference of moments that is rounding: of means in σ, of variances relative
_SETTLED = 1e-6  # layers that depend on themselves are measured again until the difference is this small
_PATIENCE = 8  # rounds in which it is not halved: a model that counts its calls differs less and less, without an end
_PLAIN = 2  # so many rounds more than there are layers replace all that was assumed
_SMALLEST_STEP = 0.02  # share of each change that is made at least, where larger ones do not settle


def settle(
    measure: Callable[[Mapping[str, Moments]], Mapping[str, Moments]],
) -> tuple[dict[str, Moments], Check, int]:
    """Measure again and again, until what is measured is what was assumed.

    Each round replaces what was assumed by what was measured under it. If each layer depends only on earlier ones, one
    layer more is right after each round. If there have been more rounds than layers and the differences no longer
    become smaller, only a share of each change is made, and that share shrinks from round to round.

    Args:
        measure: called with statistics of some layers, by name; returns what these layers normalize under them. It may
            add layers, which have no statistics yet.

    Returns:
        The statistics that are closest to what was measured under them, that comparison, and the number of rounds. The
        check has failed where they do not settle.
    """
    assumed: dict[str, Moments] = {}
    best: tuple[dict[str, Moments], Check] = {}, Check(False, None, math.inf)
    of_best: Mapping[str, Moments] = {}  # what was measured under it
    halved = math.inf  # the difference when it was last halved
    since_halved = 0
    step = 1.0
    rounds = 0
    since_added = 0
    while True:
        current = measure(assumed)
        rounds += 1
        if current.keys() - assumed.keys():
            assumed = {**assumed, **current}
            since_added = 0
            continue

        differences = {name: max(compare_moments(assumed[name], moments)) for name, moments in current.items()}
        worst = max(differences, key=lambda name: differences[name], default=None)
        largest = 0.0 if worst is None else differences[worst]
        if assumed.keys() != current.keys():  # layers that are called no longer, as where a mask leaves nothing now
            assumed = {name: moments for name, moments in assumed.items() if name in current}
        is_better = not of_best or largest < best[1].off
        if is_better:
            best = assumed, Check(largest <= SAME, None if largest <= SAME else worst, largest)
            of_best = current
        if largest < halved / 2:
            halved = largest
            since_halved = 0
        else:
            since_halved += 1
        if largest <= _SETTLED or since_halved == _PATIENCE + len(current):
            return *best, rounds

        since_added += 1
        if not is_better and since_added > _PLAIN + len(current):
            # Larger steps may have run away, so that a smaller one is made from the best.
            step = max(_SMALLEST_STEP, step / 3)
            assumed, current = best[0], of_best
        assumed = {**assumed, **{name: _mix(assumed[name], moments, step) for name, moments in current.items()}}


def _mix(before: Moments, now: Moments, step: float) -> Moments:
    """Go a share `step` of the way from one to the other."""
    if step == 1:
        return now
    mean = before.mean + step * (now.mean - before.mean)
    var = before.var + step * (now.var - before.var)
    return Moments(now.count, mean, var)
