"""BN207: other data than in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case, read_moments
from bnlab.doctor.undo import EXACT


class OtherData(Cause):
    """The averages agree with the training batches, and from the first layer on not with these images.

    Exact statistics of these images may bring the score back: they adapt the network to images that it was not trained
    on, which is seldom what is wanted where only the preprocessing differs.
    """

    code = "BN207"
    title = "other data than in training"
    meaning = "The averages are right for the training batches; these images are of another population."
    remedy = "Check the preprocessing; if the domain has changed, adapt knowingly: bnlab.recalibrate on these images."
    kind = "images"
    undone_by = (EXACT,)
    needs = ("data", "training")

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        return read_moments(case.training)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        known = [name for name in case.seen if name in case.reference]
        if not known:  # the training batches reach other layers only
            return ""
        first = known[0]
        here = case.measure_distance(first, case.exact)
        there = case.measure_distance(first, case.reference)
        off = f"first layer {describe_number(here, 2)} σ off on these images"
        return f"{off}, {describe_number(there, 2)} σ on the training batches"
