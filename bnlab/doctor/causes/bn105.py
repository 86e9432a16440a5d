"""BN105: averages that were updated while nothing was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.families import get_history
from bnlab.doctor.patient import Patient
from bnlab.doctor.undoing import EXACT, RESCALED, Undo, write_averages
from bnlab.doctor.words import count_things


class UpdatedWithoutTraining(Cause):
    """More updates counted than at the earlier checkpoint, and no parameter has changed.

    A forward in train mode averages also under `torch.no_grad()`: a model summary of random or zero images, a sanity
    check, an evaluation without `eval()`. It is undone by the earlier buffers.

    A false alarm after a recalibration that counts, such as `torch.optim.swa_utils.update_bn`.
    """

    code = "BN105"
    title = "updated while nothing was trained"
    meaning = "Forwards in train mode have moved the averages of finished weights, perhaps on other data."
    remedy = "Load the buffers of the earlier checkpoint, and call eval() before such forwards."
    undone_by = (EXACT, RESCALED)
    severity = "warning"
    needs = ("before",)

    def look(self, case: Case) -> Signs | None:
        layers = self.list_layers(case)
        return Signs.of(layers, self.describe(case, layers), None if case.evidence is None else "note")

    def propose(self, patient: Patient) -> Iterator[Undo]:
        case = patient.case
        layers = self.list_layers(case)
        if layers:
            earlier = {name: get_history(case).layers[name].buffers for name in layers}
            yield Undo(self.describe(case, layers), tuple(layers), 0, write_averages(case.layers, earlier))

    def list_layers(self, case: Case) -> Sequence[str]:
        history = get_history(case)
        if history.moved or not history.parameters:
            return []
        updated = [name for name, change in history.layers.items() if (change.updates or 0) > 0]
        # Frozen layers beside others that are trained are another cause.
        return [name for name in updated if not case.is_frozen(name)]

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        history = get_history(case)
        most = max(change.updates or 0 for change in history.layers.values())
        weights = count_things(history.parameters, "tensor")
        return f"{count_things(most, 'update')}, while {weights} of weights stayed the same"
