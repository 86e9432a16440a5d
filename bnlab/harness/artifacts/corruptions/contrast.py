"""shifts=contrast:1"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.harness.artifacts.corruptions.base import Amounts, Corruption
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Contrast(Corruption):
    """Less contrast; the amount is the share of each pixel's difference to the mean of its channel that is left."""

    name: str = "contrast"
    amounts: ClassVar[Amounts] = (0.5, 0.3, 0.15)
    words: ClassVar[str] = "less contrast: of each pixel's difference to the mean of its channel {amounts} is left"

    def apply(self, image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
        mean = image.mean((1, 2), keepdim=True)
        difference = image - mean
        return mean + amount * difference
