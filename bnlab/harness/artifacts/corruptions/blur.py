"""shifts=blur:1"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.harness.artifacts.corruptions.base import Amounts, Corruption
from bnlab.harness.components import component

_REACH = 3  # standard deviations, beyond which weights are 0


@component
@dataclass(unsafe_hash=True)
class Blur(Corruption):
    """Means with Gaussian weights; the amount is the standard deviation, a share of the width."""

    name: str = "blur"
    amounts: ClassVar[Amounts] = (Fraction(1, 32), Fraction(2, 32), Fraction(3, 32))
    words: ClassVar[str] = (
        "means of neighbouring pixels with Gaussian weights, whose standard deviation is {amounts} of the width; "
        "pixels outside of the image are those of its edge"
    )

    def apply(self, image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
        width = image.shape[-1]
        deviation = amount * width
        reach = math.ceil(_REACH * deviation)
        weights = _weigh_neighbours(deviation, reach).to(image)

        channels = image.unsqueeze(1)  # as images of one channel
        padded = F.pad(channels, [reach] * 4, mode="replicate")
        row = weights.view(1, 1, 1, -1)
        column = weights.view(1, 1, -1, 1)
        blurred = F.conv2d(padded, row)
        blurred = F.conv2d(blurred, column)
        return blurred.squeeze(1)


def _weigh_neighbours(deviation: float, reach: int) -> Tensor:
    """Compute the weights of neighbours within reach to both sides, whose sum is 1."""
    distances = torch.arange(-reach, reach + 1)
    heights = torch.exp(-0.5 * (distances / deviation) ** 2)
    return heights / heights.sum()
