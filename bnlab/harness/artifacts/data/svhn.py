"""data=svhn"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Size
from bnlab.harness.artifacts.data.published import Published, Source
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Svhn(Published):
    """House numbers (Netzer et al. 2011), 32×32 pixels."""

    source: ClassVar[Source] = Source(
        reader="SVHN",
        url="http://ufldl.stanford.edu/housenumbers/",
        file="train_32x32.mat",
        size=Size(available=73_257, test=26_032, pixels=32, classes=10),
        parts=("train", "test"),
    )
    name: str = "svhn"
