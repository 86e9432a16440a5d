"""BN104: frozen layers whose averages move."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.undoing import EXACT, RESCALED
from bnlab.doctor.words import count_things


class FrozenButMoving(Cause):
    """A layer whose weight takes no gradient, while other parameters of the model do, and whose averages move: it is in
    train mode, has been updated since `before=`, or holds averages of other images than these.

    `requires_grad_(False)` freezes weights alone. Each forward in train mode goes on averaging, and `model.train()` at
    the start of an epoch puts all layers back into train mode. So a backbone forgets its own images while a new part is
    trained on others. The third sign is an experiment: exact statistics bring back what is lost, and all weights that
    the model lists before the layers are frozen too, so that these cannot have moved away from the averages.

    A false alarm where averages are meant to follow new data under old weights; then bnlab.recalibrate does it better.
    """

    code = "BN104"
    title = "weights are frozen, averages are not"
    meaning = "requires_grad=False freezes weights alone: each forward in train() goes on averaging its own images."
    remedy = (
        "Load the old checkpoint's buffers, or recalibrate these layers (layers=) on images that the frozen part is "
        "for; call eval() on it after each train()."
    )
    undone_by = (EXACT, RESCALED)

    def look(self, case: Case) -> Signs | None:
        frozen = case.select(case.is_frozen)
        moving = [name for name in frozen if case.layers[name].training or _count_updates(case, name) > 0]
        is_training = any(case.layers[name].training for name in moving)
        return Signs.of(moving, self.describe(case, moving), "warning" if is_training else "note")

    def list_layers(self, case: Case) -> Sequence[str]:
        leading = takewhile(lambda parameter: not parameter.requires_grad, case.model.parameters())
        settled = {id(parameter) for parameter in leading}
        changes = {} if case.history is None else case.history.layers
        stayed = [name for name, change in changes.items() if change.is_same]

        def may_have_moved(name: str) -> bool:
            is_settled = id(case.layers[name].weight) in settled
            return case.is_frozen(name) and is_settled and name not in stayed

        return case.select(may_have_moved)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        told = []
        training = [name for name in layers if case.layers[name].training]
        if training:
            told.append(f"{count_things(len(training), 'frozen layer')} in train mode")
        updates = max((_count_updates(case, name) for name in layers), default=0)
        if updates > 0:
            told.append(f"{count_things(updates, 'update')} since the earlier checkpoint")
        return "; ".join(told) or "frozen weights do not move, so other images passed in train()"


def _count_updates(case: Case, name: str) -> int:
    """Count a layer's updates since the earlier checkpoint; 0 where that is not known."""
    change = None if case.history is None else case.history.layers.get(name)
    return 0 if change is None else change.updates or 0
