"""BN303: weights of a batch norm that training did not use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.undo import Undo, write_weights
from bnlab.model.layers import get_weight


class UnusedWeights(Cause):
    """Stored weights (γ) that the training ignored, so that a converter brought back a factor that was 1.

    A layer whose own averages fit, while later ones do not, is where something between them differs from training. It
    is undone by weights of 1 in the layer before the first one that does not fit, and in all layers; or, where some are
    negative, by their absolute values, which InPlaceABN trains with.
    """

    code = "BN303"
    title = "weights that training did not use"
    meaning = "Training ignored these weights (γ); applying them now gives later layers inputs they never saw."
    remedy = "Set these weights to 1, or to their absolute values, as was tried, in the converter; do not recalibrate."
    kind = "network"
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        names = [name for name in case.fold if name in case.layers]
        if all(not case.clearly_differs(name) for name in names):
            return
        weights = _list_weights(case, names)
        with_negative = [name for name, weight in weights.items() if bool((weight < 0).any())]
        if with_negative:
            apply = write_weights((weights[name], weights[name].detach().abs()) for name in with_negative)
            yield Undo("with the absolute values of the weights", tuple(with_negative), 0, apply, name="absolute")

        leading_fits = list(takewhile(lambda name: not case.clearly_differs(name), names))
        if not 0 < len(leading_fits) < len(names):
            return
        # What differs from training lies between the last layer that fits and the first one that does not.
        last_fit = leading_fits[-1]
        # Setting weights to 1 that are 1 already would undo nothing.
        not_one = [name for name, weight in weights.items() if not bool((weight == 1).all())]
        if last_fit in not_one:
            yield _set_to_one(case, [last_fit], "one")
        if not_one and not_one != [last_fit]:
            yield _set_to_one(case, not_one, "all")


def _list_weights(case: Case, names: Sequence[str]) -> dict[str, Tensor]:
    """List the weights of layers that have some."""
    weights = {name: get_weight(case.layers[name]) for name in names}
    return {name: weight for name, weight in weights.items() if weight is not None}


def _set_to_one(case: Case, names: Sequence[str], name: str) -> Undo:
    weights = _list_weights(case, names).values()
    others = " and others" if len(names) > 3 else ""
    reported = f"with the weights of {', '.join(names[:3])}{others} at 1"
    apply = write_weights((weight, torch.ones_like(weight)) for weight in weights)
    # No number is fitted, but choosing layers is a freedom too: undoing one is preferred to undoing several.
    return Undo(reported, tuple(names), len(names), apply, name=name)
