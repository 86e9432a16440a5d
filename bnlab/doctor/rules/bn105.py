"""BN105: averages that were updated while nothing was trained."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.doctor.words import count_things


class UpdatedWithoutTraining(Rule):
    """More updates counted than at the earlier checkpoint, and no parameter has changed.

    A forward in train mode averages also under `torch.no_grad()`: a model summary of random or zero images, a sanity
    check, an evaluation without `eval()`.

    Frozen layers beside others that are trained are BN104.

    A false alarm after a recalibration that counts, such as `torch.optim.swa_utils.update_bn`.
    """

    code = "BN105"
    title = "updated while nothing was trained"
    meaning = "Forwards in train mode have moved the averages of finished weights, perhaps on other data."
    remedy = "Load the buffers of the earlier checkpoint, and call eval() before such forwards."
    needs = ("before",)
    unless = ("BN104",)

    def look(self, case: Case) -> Signs | None:
        history = case.history
        assert history is not None
        if history.is_trained or not history.parameters:
            return None
        updates = {name: change.updates or 0 for name, change in history.layers.items()}
        layers = [name for name in case.layers if updates.get(name, 0) > 0]
        if not layers:
            return None

        most = max(updates.values())
        counted = count_things(most, "update")
        weights = count_things(history.parameters, "tensor")
        return Signs(tuple(layers), f"{counted}, while {weights} of weights stayed the same")
