"""shifts=translation:1"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.harness.artifacts.corruptions.base import Amounts, Corruption
from bnlab.harness.components import component

_PLANE = (1, 2)  # the dimensions of height and width


@component
@dataclass(unsafe_hash=True)
class Translation(Corruption):
    """A move up, down, left or right; the amount is a share of the width, rounded down to whole pixels."""

    name: str = "translation"
    amounts: ClassVar[Amounts] = (Fraction(1, 8), Fraction(2, 8), Fraction(3, 8))
    words: ClassVar[str] = (
        "a move up, down, left or right by {amounts} of the width in whole pixels; pixels that come in are 0"
    )

    def apply(self, image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
        width = image.shape[-1]
        distance = int(amount * width)
        quarters = int(torch.randint(4, (), generator=generator))

        # Down, in an image that is turned by so many quarters and then turned back.
        turned = image.rot90(quarters, _PLANE)
        height = turned.shape[1]
        padded = F.pad(turned, (0, 0, distance, 0))
        moved = padded[:, :height]
        return moved.rot90(-quarters, _PLANE)
