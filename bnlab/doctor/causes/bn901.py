"""BN901: what was not looked at."""

from __future__ import annotations

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case


class NotCovered(Cause):
    """Normalizations with running statistics that bnlab does not read, as they are no subclass of torch's batch norm;
    layers that the batches have not reached; and calls of `F.batch_norm` outside of a layer.

    Never a fault in itself, but what is wrong there was not seen. A false alarm for layers that are used in training
    only, such as auxiliary heads.
    """

    code = "BN901"
    title = "not covered"
    meaning = "These were not looked at, so that nothing is known of them."
    remedy = "Pass batches that reach them, or the part of the model that is used."

    def look(self, case: Case) -> Signs | None:
        unseen = () if case.evidence is None else case.evidence.exact.unseen
        warnings = () if case.evidence is None else case.evidence.warnings
        outside = [text for text in warnings if "F.batch_norm" in text]
        reported = []
        if case.uncovered:
            reported.append(f"{len(case.uncovered)} of another class than torch's")
        if unseen:
            reported.append(f"{len(unseen)} reached by no batch")
        names = [*case.uncovered, *unseen, *([""] if outside else [])]
        return Signs.of(names, "; ".join([*reported, *outside]))
