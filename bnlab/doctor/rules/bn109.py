"""BN109: a momentum of 0."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.doctor.words import count_things
from bnlab.nn.self_tuned import SelfTuned


class MomentumIsZero(Rule):
    """Momentum 0 in layers that have counted updates: none of these has moved the averages.

    Torch's momentum is the weight of the new batch, so that 0 keeps the averages as they are. Networks that were
    ported from another library have it, and fine-tuning leaves them the averages of the images before. With data only
    layers count whose averages are off.

    A false alarm without data where momentum was set to 0 after training, to keep the averages. Layers whose own weight
    is frozen are left out.
    """

    code = "BN109"
    title = "momentum is 0"
    meaning = "The averages have not moved in these updates, as torch's momentum is the weight of the new batch."
    remedy = "Set momentum to 0.1 and recalibrate."

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: _stands_still(case, name))
        counts = [case.count_updates(name) or 0 for name in layers]
        return Signs.of(layers, f"{count_things(max(counts, default=0), 'update')} of momentum 0")


def _stands_still(case: Case, name: str) -> bool:
    layer = case.layers[name]
    if layer.momentum != 0 or isinstance(layer, SelfTuned) or case.is_frozen(name) or not case.count_updates(name):
        return False
    return name not in case.seen or case.is_off(name)
