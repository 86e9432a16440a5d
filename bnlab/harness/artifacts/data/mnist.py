"""data=mnist"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Size
from bnlab.harness.artifacts.data.published import Published, Source
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Mnist(Published):
    """Handwritten digits (LeCun et al. 1998), 28×28 pixels."""

    source: ClassVar[Source] = Source(
        reader="MNIST",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        file="MNIST/raw/train-images-idx3-ubyte",
        size=Size(available=60_000, test=10_000, pixels=28, classes=10),
    )
    name: str = "mnist"
