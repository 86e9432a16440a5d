"""BN205: padding is counted."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.families import OtherStatistics
from bnlab.statistics import Statistics


class PaddingCounted(OtherStatistics):
    """The averages agree with statistics that count padded positions, and not with those of what `inputs=` gives.

    How much padding there is depends on the batch; so do statistics that count it.
    """

    code = "BN205"
    title = "padding is counted"
    meaning = "The averages describe padded positions too, whose share differs from batch to batch."
    remedy = "Normalize the positions that are not padding, in train mode too, and recalibrate."
    needs = ("data", "inputs")
    here = "without padding"
    there = "where padding is counted"

    def read_others(self, case: Case) -> Statistics | None:
        return case.data.plain
