"""BN002: never updated."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs


class NeverUpdated(Rule):
    """Running mean 0 and variance 1, where averages start, in more than 99% of a layer's channels.

    With data a layer whose exact statistics are near 0 and 1 too is no finding: the first layer behind standardized
    images, for example. Without data a layer that has counted updates is none, as its averages may be 0 and 1 rightly.
    """

    code = "BN002"
    title = "never updated"
    meaning = "The averages still are where they start, mean 0 and variance 1."
    remedy = "Train in train(), or load a checkpoint that has buffers; bnlab.recalibrate mends what there is."
    explains_bad = True
    unless = ("BN109",)

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: case.is_initial(name) and _is_wrong(case, name))
        told = _tell_updates(case, layers)
        return Signs.of(layers, f"mean 0 and variance 1 in all channels, {told}")


def _tell_updates(case: Case, layers: Sequence[str]) -> str:
    """Tell how many updates the layer that has counted most has counted."""
    counts = [case.count_updates(name) for name in layers]
    known = [count for count in counts if count is not None]
    if not known:
        return "no count of updates"
    return f"{max(known):,} updates counted"


def _is_wrong(case: Case, name: str) -> bool:
    """Return whether the start is not what the layer should hold."""
    if name not in case.seen:
        return not case.count_updates(name)
    return case.is_off(name)
