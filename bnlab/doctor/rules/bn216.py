"""BN216: evaluating the model changes it."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.probe import DIFFERENT
from bnlab.doctor.rule import Rule, Signs


class ChangesInEval(Rule):
    """Exact statistics that fail their check, also where they are measured layer by layer: an ordinary evaluation gives
    a layer another input than they were measured on.

    Random predictions do that too, but are BN211.

    A false alarm where the model computes otherwise for a few images than for a whole batch, on purpose.
    """

    code = "BN216"
    title = "evaluating the model changes it"
    meaning = (
        "Each forward in eval mode meets another model, so that no statistics are exact and no score can be relied on."
    )
    remedy = "Turn that off: of quantization, model.apply(torch.ao.quantization.disable_observer); then diagnose again."
    severity = "error"
    follows_cost = False
    explains_bad = True
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        check = case.data.exact.check
        is_random = case.data.probe.twice > DIFFERENT
        if check is None or check.is_exact or is_random:
            return None
        assert check.layer is not None
        return Signs.of([check.layer], f"an evaluation gives {check.layer!r} another input than was measured")
