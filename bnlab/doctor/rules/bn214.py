"""BN214: one of the two averages never updated."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs

_NEARLY_ALL = 0.99  # of a layer's channels


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
        without_var = case.select(lambda name: _find_half(case, name) == "variance 1")
        without_mean = case.select(lambda name: _find_half(case, name) == "mean 0")
        if without_var:
            return Signs.of(without_var, "variance 1 in all channels, but means that are not 0")
        return Signs.of(without_mean, "mean 0 in all channels, but variances that are not 1")


def _find_half(case: Case, name: str) -> str:
    """Find which half of a layer's averages alone is where it starts; empty if neither is, or rightly so."""
    mean, var = case.buffers[name]
    is_mean_left = float((mean == 0).double().mean()) > _NEARLY_ALL
    is_var_left = float((var == 1).double().mean()) > _NEARLY_ALL
    if is_mean_left == is_var_left or (name in case.seen and not case.is_off(name)):
        return ""
    return "variance 1" if is_var_left else "mean 0"
