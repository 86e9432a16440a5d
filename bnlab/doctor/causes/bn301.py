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
        dead = 0
        weak = 0
        channels = 0
        layers = []
        for name in case.seen:
            var = exact[name].var
            eps = exact.eps[name]
            # Compared as products, and with ≤: where eps is 0, a variance of 0 is dead, too.
            is_dead = var <= DEAD * eps
            is_weak = var <= WEAK * eps
            if is_dead.any() or is_weak.double().mean() > WEAK_SHARE:
                layers.append(name)
                dead += int(is_dead.sum())
                weak += int(is_weak.sum())
                channels += len(var)
        return Signs.of(layers, f"variances below 10 eps in {dead} of {channels} channels, below 100 eps in {weak}")
