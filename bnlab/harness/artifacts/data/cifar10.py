"""data=cifar10"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Size
from bnlab.harness.artifacts.data.published import Flippable, Source
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Cifar10(Flippable):
    """Small photographs of ten classes (Krizhevsky 2009), 32×32 pixels."""

    source: ClassVar[Source] = Source(
        reader="CIFAR10",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        file="cifar-10-batches-py/data_batch_1",
        size=Size(available=50_000, test=10_000, pixels=32, classes=10),
    )
    name: str = "cifar10"
