"""BN210: an outlying training image."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.images import OUTLYING
from bnlab.doctor.rule import Rule, Signs


class OutlyingImage(Rule):
    """An image of the training batches whose standard deviation is more than ten times that of the median image.

    One that was left out of the standardization, or is broken. It raises the variance that averages take from its
    batch, and they remember it for as long as their momentum says. Only layers count whose averages are off.

    A false alarm where such images are right, as recordings of very different loudness may be; with labels the cost of
    the averages decides.
    """

    code = "BN210"
    title = "an outlying training image"
    meaning = "A training image is scaled otherwise than the rest, and the averages remember its batch."
    remedy = "Mend or leave out that image, then recalibrate on the others."
    needs = ("training",)

    def look(self, case: Case) -> Signs | None:
        outlier = case.outlier
        if outlier is None or not outlier.ratio > OUTLYING:
            return None

        place = f"image {outlier.number:,} of the training batches, counted from 0"
        told = f"{place}: its σ is {outlier.ratio:.2g} times the median's"
        layers = [name for name in case.seen if case.is_off(name)]
        return Signs.of(layers, told)
