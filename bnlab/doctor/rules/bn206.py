"""BN206: dropout before batch norm."""

from __future__ import annotations

import math

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs

_SHIFT = math.log(1.05)


class DropoutBefore(Rule):
    """Dropout in front of a layer raises the variance in train mode, which is what the running variance follows.

    A layer whose running variance fits eval mode, as after a recalibration, is no finding.
    """

    code = "BN206"
    title = "dropout before batch norm"
    meaning = "Dropout raises the variance that is averaged in train mode; eval mode has no dropout."
    remedy = "Put dropout behind the last batch norm, or recalibrate after training."
    severity = "note"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        shifts = {}
        for name in case.seen:
            shift = _find_shift(case, name)
            if abs(shift) > _SHIFT and _follows_dropout(case, name, shift):
                shifts[name] = shift
        if not shifts:
            return None

        worst = max(shifts, key=lambda name: abs(shifts[name]))
        ratio = math.exp(shifts[worst])
        running_ratios = case.log_ratios(worst).exp()
        running = float(running_ratios.median())
        told = f"variance with dropout {ratio:.2f} times that without, running {running:.2f} times"
        return Signs.of(shifts, told)


def _find_shift(case: Case, name: str) -> float:
    """Find the log ratio of a layer's variance with dropout and without, median over channels; 0 without any."""
    ratios = case.data.dropped.get(name)
    return 0.0 if ratios is None else float(ratios.median().log())


def _follows_dropout(case: Case, name: str, shift: float) -> bool:
    """Return whether a layer's running variance is nearer to that with dropout than to that without."""
    running = case.log_ratios(name)
    off_without = running.abs().median()
    off_with = (running - shift).abs().median()
    return bool(off_with < off_without)
