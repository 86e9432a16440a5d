"""BN206: dropout before batch norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause
from bnlab.doctor.undoing import EXACT


class DropoutBefore(Cause):
    """Dropout in front of a layer raises the variance in train mode, which is what the running variance follows.

    Variances as they are with dropout explain the averages better than those of eval mode.
    """

    code = "BN206"
    title = "dropout before batch norm"
    meaning = "Dropout raises the variance that is averaged in train mode; eval mode has no dropout."
    remedy = "Put dropout behind the last batch norm, or recalibrate after training."
    undone_by = (EXACT,)
    needs = ("data",)

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        dropped = case.data.dropped
        exact = case.read_exact(name for name in dropped if name in case.data.exact)
        return {name: torch.stack((mean, var * dropped[name])) for name, (mean, var) in exact.items()}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        dropped = case.data.dropped
        behind = [name for name in layers if name in dropped]
        worst = max(behind, key=lambda name: abs(float(dropped[name].log().median())))
        with_dropout = float(dropped[worst].median())
        running = float(case.log_ratios(worst).exp().median())
        return f"variance with dropout {with_dropout:.2f} times that without, running {running:.2f} times"
