"""BN207: other data than in training."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.families import OtherStatistics
from bnlab.statistics import Statistics


class OtherData(OtherStatistics):
    """The averages agree with the training batches, and from the first layer on not with these images.

    Exact statistics of these images may bring the score back: they adapt the network to images that it was not trained
    on, which is seldom what is wanted where only the preprocessing differs.
    """

    code = "BN207"
    title = "other data than in training"
    meaning = "The averages are right for the training batches; these images are of another population."
    remedy = "Check the preprocessing; if the domain has changed, adapt knowingly: bnlab.recalibrate on these images."
    kind = "images"
    needs = ("data", "training")
    here = "on these images"
    there = "on the training batches"

    def read_others(self, case: Case) -> Statistics | None:
        return case.training
