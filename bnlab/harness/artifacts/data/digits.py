"""data=digits"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Data
from bnlab.harness.artifacts.data.parts import Parts, Size
from bnlab.harness.settings import component


@component
@dataclass(unsafe_hash=True)
class Digits(Data):
    """1,797 handwritten digits of 8×8 pixels that come with bnlab: nothing to download."""

    largest: ClassVar[float] = 16
    name: str = "digits"

    def find_size(self) -> Size:
        return Size(available=1438, test=359, pixels=8, classes=10)

    def read(self) -> Parts:
        from bnlab.common.digits import load_digits  # loads torch
        from bnlab.harness.artifacts.data.images.pixels import draw_order

        images, labels = load_digits()
        order = draw_order(len(labels))
        test, train = order.tensor_split([len(labels) // 5])
        return Parts(
            train=(images[train], labels[train]),
            test=(images[test], labels[test]),
        )
