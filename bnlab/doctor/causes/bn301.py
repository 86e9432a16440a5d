"""BN301: dead or eps-dominated channels."""

from __future__ import annotations

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import DEAD, WEAK, WEAK_SHARE


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
        exact = case.exact
        dead = weak = channels = 0
        layers = []
        for name in case.seen:
            in_eps = exact[name].var / exact.eps[name]
            is_weak = in_eps < WEAK
            if (in_eps < DEAD).any() or is_weak.double().mean() > WEAK_SHARE:
                layers.append(name)
                dead += int((in_eps < DEAD).sum())
                weak += int(is_weak.sum())
                channels += len(in_eps)
        return Signs.of(layers, f"of {channels} channels {dead} have a variance below 10 eps, {weak} below 100 eps")
