"""BN003: variances of 0, as some tools write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.undoing import EXACT


class Zeroed(Cause):
    """Running variance exactly 0 in more than 99% of a layer's channels.

    Tools that average anew start from 0 in the place of 1, and leave it there if they are given no batch.

    A false alarm where a layer is given nothing but constants: the variance of dead channels decays to 0. With data
    such a layer fits, and is no finding.
    """

    code = "BN003"
    title = "zeroed"
    meaning = "The variances are 0, which no batch gives: some tool has reset the averages and not filled them."
    remedy = "Load the buffers as they were before that tool, or recalibrate."
    undone_by = (EXACT,)
    severity = "warning"

    def look(self, case: Case) -> Signs | None:
        layers = [name for name in _list_zeroed(case) if name not in case.seen]
        return Signs.of(layers, self.describe(case, layers))

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        means = {name: case.buffers[name][0] for name in _list_zeroed(case)}
        return {name: torch.stack((mean, torch.zeros_like(mean))) for name, mean in means.items()}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        return "variance 0 in more than 99% of the channels"


def _list_zeroed(case: Case) -> list[str]:
    return case.select(lambda name: float((case.buffers[name][1] == 0).double().mean()) > 0.99)
