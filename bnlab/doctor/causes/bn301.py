"""BN301: dead or eps-dominated channels."""

from __future__ import annotations

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
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        exact = case.data.exact
        dead = weak = channels = 0
        layers = []
        for name in case.seen:
            in_eps = exact[name].var / exact.eps[name]
            is_weak = in_eps < _WEAK
            if (in_eps < _DEAD).any() or is_weak.double().mean() > _SHARE:
                layers.append(name)
                dead += int((in_eps < _DEAD).sum())
                weak += int(is_weak.sum())
                channels += len(in_eps)
        return Signs.of(layers, f"of {channels} channels {dead} have a variance below 10 eps, {weak} below 100 eps")
