"""shifts=occlusion:1"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.harness.artifacts.corruptions.base import Amounts, Corruption
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Occlusion(Corruption):
    """A square of 0 anywhere within the image; the amount is its side, a share of the width, rounded down to pixels."""

    name: str = "occlusion"
    amounts: ClassVar[Amounts] = (Fraction(1, 4), Fraction(3, 8), Fraction(1, 2))
    words: ClassVar[str] = (
        "a square of 0 anywhere within the image, with a side of {amounts} of the width in whole pixels"
    )

    def apply(self, image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
        _, height, width = image.shape
        side = int(amount * width)
        down, across = torch.rand(2, generator=generator).tolist()
        places_down = height - side + 1
        places_across = width - side + 1
        top = int(down * places_down)
        left = int(across * places_across)

        hidden = image.clone()
        square = hidden.narrow(1, top, side).narrow(2, left, side)
        square.zero_()
        return hidden
