"""BN301: dead or eps-dominated channels."""

from __future__ import annotations

from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs

_DEAD = 10  # eps
_WEAK = 100  # eps
_SHARE = 0.05  # of a layer's channels


class DeadChannels(Cause):
    """A channel has a variance below 10 eps, or more than 5% of a layer's have one below 100 eps.

    What such a channel puts out is decided by eps, or by nothing but its bias. It is no fault of the averages.
    """

    code = "BN301"
    title = "dead or eps-dominated channels"
    meaning = "Channels hardly vary: they put out a constant, or what eps makes of them."
    remedy = "Prune them, or look at eps and the scale of the layer before."
    severity = "note"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        dead = weak = channels = 0
        layers = []
        for name in case.seen:
            values = _measure_in_eps(case, name)
            is_dead = values < _DEAD
            is_weak = values < _WEAK
            if is_dead.any() or is_weak.double().mean() > _SHARE:
                layers.append(name)
                dead += int(is_dead.sum())
                weak += int(is_weak.sum())
                channels += len(values)
        return Signs.of(layers, f"of {channels} channels {dead} have a variance below 10 eps, {weak} below 100 eps")


def _measure_in_eps(case: Case, name: str) -> Tensor:
    """Measure the variance of each channel in units of eps [C]; infinite where eps is 0."""
    exact = case.data.exact
    return exact[name].var / exact.eps[name]
