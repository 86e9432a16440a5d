"""shifts=noise:1"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.harness.artifacts.corruptions.base import Amounts, Corruption
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Noise(Corruption):
    """Normal noise on each pixel; the amount is its standard deviation."""

    name: str = "noise"
    amounts: ClassVar[Amounts] = (0.1, 0.2, 0.3)
    words: ClassVar[str] = "normal noise on each pixel, with a standard deviation of {amounts} of the range"

    def apply(self, image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
        noise = torch.randn(image.shape, generator=generator)
        return image + amount * noise
