"""BN304: a forward that does not compute what the averages are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.patient import Patient
from bnlab.doctor.undo import Undo, normalize_by_averages, replace_forwards
from bnlab.doctor.words import count_things


class OtherForward(Cause):
    """Layers whose forward in eval mode does not read their running mean, their running variance, or their weight and
    bias: found by changing each and looking whether the output moves.

    A norm that subtracts no mean, one that uses the batch's own statistics in eval mode too, or an exported graph whose
    batch norms stay in train mode. It is undone by an ordinary batch norm in their place.
    """

    code = "BN304"
    title = "the forward leaves something out"
    meaning = "In eval mode these layers do not use all that they hold, and compute another thing than training."
    remedy = "Mend the layers' forward, or export the model again in eval mode."
    kind = "network"
    severity = "warning"
    needs = ("data",)

    def propose(self, patient: Patient) -> Iterator[Undo]:
        unread = patient.case.data.unread
        layers = [name for name in patient.exact if name in unread]
        if layers:
            forwards = [patient.case.layers[name] for name in layers]
            apply = replace_forwards(forwards, normalize_by_averages)
            yield Undo(_describe(patient.case, layers), tuple(layers), 0, apply)

    def look(self, case: Case) -> Signs | None:
        layers = [name for name in case.seen if name in case.data.unread]
        return Signs.of(layers, _describe(case, layers))


def _describe(case: Case, layers: Sequence[str]) -> str:
    parts = sorted({part for name in layers for part in case.data.unread[name]})
    return f"eval mode does not read {', '.join(parts)} of {count_things(len(layers), 'layer')}"
