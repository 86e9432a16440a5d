"""data=cifar100"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Size
from bnlab.harness.artifacts.data.published import Flippable, Source
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Cifar100(Flippable):
    """Small photographs of a hundred classes (Krizhevsky 2009), 32×32 pixels."""

    source: ClassVar[Source] = Source(
        reader="CIFAR100",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        file="cifar-100-python/train",
        size=Size(available=50_000, test=10_000, pixels=32, classes=100),
    )
    name: str = "cifar100"
