"""BN205: padding is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from bnlab.doctor.case import Case, read_moments
from bnlab.doctor.cause import Cause
from bnlab.doctor.undoing import EXACT


class PaddingCounted(Cause):
    """The averages agree with statistics that count padded positions, and not with those of what `inputs=` gives.

    How much padding there is depends on the batch; so do statistics that count it.
    """

    code = "BN205"
    title = "padding is counted"
    meaning = "The averages describe padded positions too, whose share differs from batch to batch."
    remedy = "Normalize the positions that are not padding, in train mode too, and recalibrate."
    undone_by = (EXACT,)
    needs = ("data", "inputs")

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        return read_moments(case.data.plain)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        worst = max(layers, key=case.find_gap)
        gap, _ = case.find_gap(worst)
        plain_gap, _ = case.find_gap(worst, case.data.plain)
        return f"means up to {gap:.2f} σ off, {plain_gap:.2f} σ where padding is counted"
