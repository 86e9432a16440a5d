"""BN104: frozen layers whose averages move."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Severity, Signs
from bnlab.doctor.undoing import EXACT, RESCALED
from bnlab.doctor.words import count_things


class FrozenButMoving(Cause):
    """A layer whose weight takes no gradient, while other parameters of the model do, and whose averages move: it is in
    train mode, has been updated since `before=`, or holds averages of other images than these.

    `requires_grad_(False)` freezes weights alone. Each forward in train mode goes on averaging, and normalizes by its
    batch, and `model.train()` at the start of an epoch puts all layers back into train mode. So a backbone or an old
    head that stays as it is forgets its own images while a new part is trained on others.

    The third sign is an experiment: exact statistics bring back what is lost. All weights that the model lists before
    the layers must be frozen too, so that these cannot have moved away from the averages.

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
        training = [name for name in frozen if case.layers[name].training]
        moving = [name for name in frozen if name in training or _count_updates(case, name) > 0]
        severity: Severity = "warning" if training else "note"
        return Signs.of(moving, self.describe(case, moving), severity)

    def list_layers(self, case: Case) -> Sequence[str]:
        behind = [name for name in case.select(case.is_frozen) if _is_behind_frozen_ones(case, name)]
        return [name for name in behind if not _stayed(case, name)]

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        told = []
        training = [name for name in layers if case.layers[name].training]
        if training:
            told.append(f"{count_things(len(training), 'frozen layer')} in train mode")
        updates = max((_count_updates(case, name) for name in layers), default=0)
        if updates > 0:
            told.append(f"{count_things(updates, 'update')} since the earlier checkpoint")
        if not told:
            told.append("frozen weights do not move, so other images passed in train()")
        return "; ".join(told)


def _count_updates(case: Case, name: str) -> int:
    """Count a layer's updates since the earlier checkpoint; 0 where that is not known."""
    change = None if case.history is None else case.history.layers.get(name)
    return 0 if change is None else change.updates or 0


def _stayed(case: Case, name: str) -> bool:
    """Return whether a layer's averages are known to be the earlier ones."""
    change = None if case.history is None else case.history.layers.get(name)
    return change is not None and change.is_same


def _is_behind_frozen_ones(case: Case, name: str) -> bool:
    """Return whether no parameter that the model lists before a layer's takes a gradient."""
    own = case.layers[name].weight
    for parameter in case.model.parameters():
        if parameter is own:
            return True
        if parameter.requires_grad:
            return False
    return True
