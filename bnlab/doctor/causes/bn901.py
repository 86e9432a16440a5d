"""BN901: what was not looked at."""

from __future__ import annotations

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case, has_bad_values, read_all_buffers
from bnlab.doctor.evidence.stored import holds_start
from bnlab.model.layers import join_names


class NotCovered(Cause):
    """Normalizations with running statistics that bnlab does not read, as they are no subclass of torch's batch norm;
    layers that the batches have not reached; and calls of `F.batch_norm` outside of a layer.

    Never a fault in itself, but what is wrong there was not seen. What such norms store is looked at all the same: a
    warning if it is not finite, a negative variance, or mean 0 and variance 1, where averages start. It is a false
    alarm for layers that are used in training only, such as auxiliary heads.
    """

    code = "BN901"
    title = "not covered"
    meaning = "These were not examined, so nothing is known about them."
    remedy = "Pass batches that reach them, or the part of the model that is used."

    def look(self, case: Case) -> Signs | None:
        # Where no norm can be measured, those that are stored are the layers, and other causes look at them.
        if not case.is_measurable:
            return None
        unseen = case.exact.unseen if case.has_data else ()
        outside = [text for text in case.warnings if "F.batch_norm" in text]
        reported = []
        if case.uncovered:
            reported.append(f"{len(case.uncovered)} of another class than torch's")
        if unseen:
            reported.append(f"{len(unseen)} reached by no batch")
        # Calls of `F.batch_norm` belong to no layer, so that the model itself, "", is named.
        names = [*case.uncovered, *unseen]
        if outside:
            names.append("")
        spoiled = _describe_spoiled(case)
        if spoiled:
            return Signs.of(names, "; ".join([*reported, spoiled, *outside]), "warning")
        return Signs.of(names, "; ".join([*reported, *outside]))


def _describe_spoiled(case: Case) -> str:
    """Say which norms that are not measured store what cannot be right; "" where none does."""
    buffers = read_all_buffers(case.stored)
    bad = [name for name, values in buffers.items() if has_bad_values(values)]
    at_start = [name for name, norm in case.stored.items() if holds_start(norm)]
    reported = []
    if bad:
        reported.append(f"not finite or negative in {join_names(bad)}")
    if at_start:
        reported.append(f"mean 0 and variance 1 in {join_names(at_start)}")
    return "; ".join(reported)
