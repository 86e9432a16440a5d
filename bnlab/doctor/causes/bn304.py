"""BN304: a forward that does not compute what the averages are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.undo import Undo, normalize_by_averages, replace_forwards
from bnlab.doctor.words import count_things


class OtherForward(Cause):
    """Layers whose forward in eval mode does not read their running mean, their running variance, or their weight and
    bias: found by changing each and looking whether the output moves. Or layers with a forward of their own whose
    output is not (x − μ)/√(σ² + eps)·γ + β: it is compared with that, and with what is written instead, such as |γ|.

    A norm that subtracts no mean, one that uses the batch's own statistics in eval mode too, or an exported graph whose
    batch norms stay in train mode. It is undone by an ordinary batch norm in their place.

    Another formula is a note where the ordinary one predicts no better, as then training used it too. An activation
    that is built in after the formula is no sign at all.
    """

    code = "BN304"
    title = "the forward leaves something out"
    meaning = "In eval mode these layers ignore part of what they store, or use another formula than training did."
    remedy = "Repair the layers' forward, or export the model again in eval mode."
    kind = "network"
    severity = "warning"
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        # Where an activation, say, is built in behind the formula, an ordinary batch norm would drop it.
        affine = [name for name, deviation in case.deviations.items() if deviation.is_affine]
        layers = [name for name in case.fold if name in case.unread or name in affine]
        if layers:
            forwards = [case.layers[name] for name in layers]
            apply = replace_forwards(forwards, normalize_by_averages)
            yield Undo(_describe(case, layers), tuple(layers), 0, apply)

    def look(self, case: Case) -> Signs | None:
        layers = [name for name in case.seen if name in case.unread]
        if layers:
            return Signs.of(layers, _describe(case, layers))
        # Training may have used this formula too, so that only the undo can show that it costs something.
        layers = [name for name in case.seen if name in case.deviations]
        return Signs.of(layers, _describe(case, layers), "note")


def _describe(case: Case, layers: Sequence[str]) -> str:
    unread = {name: case.unread[name] for name in layers if name in case.unread}
    deviations = {name: case.deviations[name] for name in layers if name in case.deviations}
    reported = []
    if unread:
        counts = Counter(part for of_layer in unread.values() for part in of_layer)
        parts = [f"{part} of {count_things(count, 'layer')}" for part, count in sorted(counts.items())]
        reported.append(f"eval mode does not read {', '.join(parts)}")
    if deviations:
        words = sorted({deviation.words for deviation in deviations.values()})
        reported.append(f"{count_things(len(deviations), 'layer')} with {', '.join(words)}")
    return "; ".join(reported)
