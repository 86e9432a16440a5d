"""BN210: an outlying training image."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause
from bnlab.doctor.thresholds import OUTLYING
from bnlab.doctor.undoing import EXACT, RESCALED


class OutlyingImage(Cause):
    """An image of the training batches whose standard deviation is more than ten times that of the median image.

    One that was left out of the standardization, or is broken. It raises the variance that averages take from its
    batch, and they remember it for as long as their momentum says.

    A false alarm where such images are right, as recordings of very different loudness may be.
    """

    code = "BN210"
    title = "an outlying training image"
    meaning = "A training image is scaled otherwise than the rest, and the averages remember its batch."
    remedy = "Mend or leave out that image, then recalibrate on the others."
    undone_by = (EXACT, RESCALED)
    needs = ("training",)

    def list_layers(self, case: Case) -> Sequence[str]:
        _, ratio = case.outlier or (0, 0.0)
        return [*case.layers] if ratio > OUTLYING else []

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        number, ratio = case.outlier or (0, 0.0)
        return f"image {number:,} of the training batches, counted from 0: its σ is {ratio:.2g} times the median's"
