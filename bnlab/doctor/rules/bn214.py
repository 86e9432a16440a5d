"""BN214: one of the two averages never updated."""

from __future__ import annotations

from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs

_NEARLY_ALL = 0.99  # of a layer's channels
_MEAN = "mean 0"
_VARIANCE = "variance 1"


class HalfUpdated(Rule):
    """Running variance 1 in more than 99% of a layer's channels while its means have moved from 0, or means 0 while
    variances have moved from 1.

    With data a layer whose exact statistics are near these is no finding.
    """

    code = "BN214"
    title = "one of the averages never updated"
    meaning = "One of running_mean and running_var is where it starts, as where a tool copied the other alone."
    remedy = "Copy or load both; bnlab.recalibrate mends what there is."
    explains_bad = True
    unless = ("BN001", "BN003")

    def look(self, case: Case) -> Signs | None:
        halves = {name: _find_half(case, name) for name in case.layers}
        without_var = [name for name, half in halves.items() if half == _VARIANCE]
        if without_var:
            told = f"{_VARIANCE} in all channels, but means that are not 0"
            return Signs.of(without_var, told)

        without_mean = [name for name, half in halves.items() if half == _MEAN]
        told = f"{_MEAN} in all channels, but variances that are not 1"
        return Signs.of(without_mean, told)


def _find_half(case: Case, name: str) -> str:
    """Find which half of a layer's averages alone is where it starts; empty if neither is, or rightly so."""
    if name in case.seen and not case.is_off(name):
        return ""
    mean, var = case.buffers[name]
    is_mean_left = _are_nearly_all(mean == 0)
    is_var_left = _are_nearly_all(var == 1)

    if is_mean_left == is_var_left:
        return ""  # both are BN002's
    return _VARIANCE if is_var_left else _MEAN


def _are_nearly_all(shows: Tensor) -> bool:
    """Return whether a condition [C] holds in nearly all channels."""
    share = shows.double().mean()
    return float(share) > _NEARLY_ALL
