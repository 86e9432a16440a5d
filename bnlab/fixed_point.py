"""Layers that are called several times in a forward, or reached late: their statistics depend on themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from bnlab.breadth import CALLER, Cost, Evaluation
from bnlab.moments import Moments

# Passes are repeated until assumption and measurement agree to this (in σ, and in the logarithm of the variance).
TOLERANCE = 1e-6
PASSES = 100


def measure(
    evaluation: Evaluation, batches: Iterable[Any], advance: Callable[[], object], cost: Cost
) -> dict[str, Moments]:
    """Moments of the layers that are reached, in the order in which they were finished first.

    One pass, unless layers are called several times in a forward or reached by some batches after others have finished
    them. Their statistics depend on themselves: they are assumed (pinned), measured, and assumed anew until both agree.

    Raises:
        ValueError: they do not agree after 100 passes.
    """
    found, revisited = evaluation.run({}, advance, batches)
    order, pinned, relaxation, before = list(found), dict[str, Moments](), 1.0, float("inf")
    cost.passes = 1
    while revisited:
        pinned |= {name: found[name] for name in found if name in revisited}
        found, revisited = evaluation.run(pinned, lambda: None)
        cost.passes += 1
        if revisited:
            continue
        seen = {name: evaluation.observed(name) for name in pinned}
        cost.residual = max(distance(pinned[name], moments) for name, moments in seen.items())
        if cost.residual <= TOLERANCE:
            # As assumed, with the count of all calls.
            found |= {name: between(pinned[name], moments, 0.0) for name, moments in seen.items()}
            break
        if not cost.residual < float("inf") or cost.passes >= PASSES:
            raise ValueError(
                f"{CALLER}: layers {', '.join(sorted(pinned))} are called several times or skipped, and did not settle "
                f"in {cost.passes} passes (residual {cost.residual:.1e}); leave them out with layers="
            )
        relaxation = relaxation if cost.residual < before else relaxation / 2
        before, revisited = cost.residual, set(pinned)
        found |= {name: between(pinned[name], moments, relaxation) for name, moments in seen.items()}
    evaluation.account(cost)
    return {name: found[name] for name in [*order, *found] if name in found}


def distance(assumed: Moments, seen: Moments) -> float:
    """The larger of the largest differences of the means, in σ, and of the logarithms of the variances."""
    mean = ((seen.mean - assumed.mean).abs() / assumed.var.sqrt()).nan_to_num(0.0)  # 0/0: a dead channel
    var = (seen.var / assumed.var).log().abs().nan_to_num(0.0)
    return float(torch.maximum(mean, var).max())


def between(assumed: Moments, seen: Moments, share: float) -> Moments:
    """`share` of the way from what was assumed to what was seen."""
    mean, var = (torch.lerp(getattr(assumed, key), getattr(seen, key), share) for key in ("mean", "var"))
    return Moments(seen.count, mean, var)
