"""BN104: frozen layers whose averages move."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.chance import compare_with_chance, is_beyond_chance
from bnlab.doctor.rule import Rule, Signs
from bnlab.doctor.words import count_things

_OTHER_IMAGES = "frozen weights do not move, so other images passed in train() (or these are prepared otherwise)"


class FrozenButMoving(Rule):
    """A layer whose weight takes no gradient, while other parameters of the model do, and whose averages move: it is in
    train mode, has been updated since `before=`, or holds averages of other images than these.

    `requires_grad_(False)` freezes weights alone. Each forward in train mode goes on averaging, and normalizes by its
    batch, and `model.train()` at the start of an epoch puts all layers back into train mode. So a backbone or an old
    head that stays as it is forgets its own images while a new part is trained on others.

    The third sign needs data that scores better under exact statistics, and averages that are off by more than chance
    explains. All weights that the model lists before the layer must be frozen too, so that these cannot have moved away
    from the averages. Where the model takes no gradients at all, as for inference or in an average of weights, it is
    BN108: such weights may have been moved before.

    A false alarm where averages are meant to follow new data under old weights; then bnlab.recalibrate does it better.
    The third sign is one, too, where these images are prepared otherwise than those of the frozen part.
    """

    code = "BN104"
    title = "weights are frozen, averages are not"
    meaning = "requires_grad=False freezes weights alone: each forward in train() goes on averaging its own images."
    remedy = (
        "Load the old checkpoint's buffers, or recalibrate these layers (layers=) on images that the frozen part is "
        "for; call eval() on it after each train()."
    )
    unless = ("BN001", "BN002", "BN003", "BN101", "BN209", "BN302")

    def look(self, case: Case) -> Signs | None:
        frozen = case.select(case.is_frozen)
        training = [name for name in frozen if case.layers[name].training]
        updates = {name: _count_updates(case, name) for name in frozen}
        off = _list_other_images(case, frozen)
        layers = [name for name in frozen if name in training or updates[name] > 0 or name in off]
        if not layers:
            return None

        told = []
        if training:
            counted = count_things(len(training), "frozen layer")
            told.append(f"{counted} in train mode")
        most = max(updates.values())
        if most > 0:
            counted = count_things(most, "update")
            told.append(f"{counted} since the earlier checkpoint")
        if off:
            told.append(compare_with_chance(case, off))
        if off and not training and most == 0:
            told.append(_OTHER_IMAGES)
        return Signs(tuple(layers), "; ".join(told), "warning" if training else "note")


def _count_updates(case: Case, name: str) -> int:
    """Count a layer's updates since the earlier checkpoint; 0 where that is not known."""
    change = None if case.history is None else case.history.layers.get(name)
    return 0 if change is None else change.updates or 0


def _list_other_images(case: Case, frozen: Sequence[str]) -> list[str]:
    """List the frozen layers whose averages neither chance explains nor weights that move, if they cost something."""
    evidence = case.evidence
    if evidence is None or not case.is_costly:
        return []
    first = next(iter(evidence.exact))
    if first not in case.layers:
        return []  # what explains the first layer, such as another preprocessing, explains those behind it

    others = []
    for name in frozen:
        is_off = name in case.seen and is_beyond_chance(case, name)
        if is_off and _is_behind_frozen_ones(case, name):
            others.append(name)
    return others


def _is_behind_frozen_ones(case: Case, name: str) -> bool:
    """Return whether no parameter that the model lists before a layer's takes a gradient."""
    own = case.layers[name].weight
    for parameter in case.model.parameters():
        if parameter is own:
            return True
        if parameter.requires_grad:
            return False
    return True
