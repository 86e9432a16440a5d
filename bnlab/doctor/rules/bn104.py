"""BN104: frozen layers whose averages move."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.doctor.words import count_things


class FrozenButMoving(Rule):
    """A layer whose weight takes no gradient, while other parameters do, in train mode; or updated since `before=`.

    `requires_grad_(False)` freezes weights alone. Each forward in train mode goes on averaging, and normalizes by its
    batch, and `model.train()` at the start of an epoch puts all layers back into train mode.

    A false alarm where averages are meant to follow new data under old weights; then bnlab.recalibrate does it better.
    """

    code = "BN104"
    title = "frozen, but moving"
    meaning = "The weights are frozen and the averages are not: each forward in train mode moves them."
    remedy = "Call eval() on the frozen layers after each train(), and restore their buffers."

    def look(self, case: Case) -> Signs | None:
        frozen = case.select(case.is_frozen)
        training = [name for name in frozen if case.layers[name].training]
        updates = {name: _count_updates(case, name) for name in frozen}
        layers = [name for name in frozen if name in training or updates[name] > 0]
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
        return Signs(tuple(layers), "; ".join(told), "warning" if training else "note")


def _count_updates(case: Case, name: str) -> int:
    """Count a layer's updates since the earlier checkpoint; 0 where that is not known."""
    change = None if case.history is None else case.history.layers.get(name)
    return 0 if change is None else change.updates or 0
