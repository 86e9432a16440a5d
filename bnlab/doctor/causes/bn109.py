"""BN109: a momentum of 0."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.undoing import EXACT, RESCALED
from bnlab.doctor.words import count_things
from bnlab.nn.self_tuned import SelfTuned


class MomentumIsZero(Cause):
    """Momentum 0 in layers that have counted updates: none of these has moved the averages.

    Torch's momentum is the weight of the new batch, so that 0 keeps the averages as they are. Networks that were
    ported from another library have it, and fine-tuning leaves them the averages of the images before. With data it is
    named where exact statistics bring something back.

    A false alarm without data where momentum was set to 0 after training, to keep the averages. Layers whose own weight
    is frozen are left out.
    """

    code = "BN109"
    title = "momentum is 0"
    meaning = "The averages have not moved in these updates, as torch's momentum is the weight of the new batch."
    remedy = "Set momentum to 0.1 and recalibrate."
    undone_by = (EXACT, RESCALED)
    severity = "warning"

    def list_layers(self, case: Case) -> Sequence[str]:
        still = case.select(lambda name: case.layers[name].momentum == 0 and bool(case.count_updates(name)))
        return [name for name in still if not isinstance(case.layers[name], SelfTuned) and not case.is_frozen(name)]

    def look(self, case: Case) -> Signs | None:
        layers = self.list_layers(case) if case.evidence is None else []
        return Signs.of(layers, self.describe(case, layers))

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        counts = [case.count_updates(name) or 0 for name in layers]
        return f"{count_things(max(counts, default=0), 'update')} of momentum 0"
