"""data=fashion_mnist"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Size
from bnlab.harness.artifacts.data.published import Flippable, Source
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class FashionMnist(Flippable):
    """Pictures of clothes (Xiao et al. 2017), 28×28 pixels."""

    source: ClassVar[Source] = Source(
        reader="FashionMNIST",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        file="FashionMNIST/raw/train-images-idx3-ubyte",
        size=Size(available=60_000, test=10_000, pixels=28, classes=10),
    )
    name: str = "fashion_mnist"
