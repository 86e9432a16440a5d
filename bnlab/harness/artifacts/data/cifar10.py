"""data=cifar10"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Data
from bnlab.harness.artifacts.data.parts import Parts, Size
from bnlab.harness.errors import UserError
from bnlab.harness.settings import component, setting

_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
_FOLDER = "cifar-10-batches-py"  # below `data.root`, where torchvision puts it


@component
@dataclass(unsafe_hash=True)
class Cifar10(Data):
    """Small photographs of ten classes (Krizhevsky 2009), 32×32 pixels."""

    size: ClassVar[Size] = Size(available=50_000, test=10_000, pixels=32, classes=10)
    storage: ClassVar[tuple[str, ...]] = ("root", "download")
    name: str = "cifar10"
    root: str = setting("data", "the folder in which it is")
    download: bool = setting(False, "download it if it is not there")
    copies: bool = setting(
        False,
        "read it from image files in `train/<class>/` and `test/<class>/` below `data.root`, such as JPEG copies",
    )
    flip: bool = setting(False, "augmentation: random horizontal flip")

    def find_size(self) -> Size:
        return self.size

    def check(self) -> None:
        if self.copies:
            self._check_copies()
        else:
            file = Path(self.root, _FOLDER, "data_batch_1")
            if not self.download and not file.exists():
                what_to_do = f"set data.download=true, or put the files of {_URL} there"
                raise UserError(f"{self.name}: {file} is missing; {what_to_do}")
        super().check()

    def _check_copies(self) -> None:
        """Raise UserError unless the folder of the copies is there, which nothing downloads."""
        folder = Path(self.root, "train")
        if folder.exists():
            return
        raise UserError(
            f"{self.name}: {folder} is missing; copies are image files in train/<class>/ and test/<class>/ below "
            "data.root.\ndata.download=true downloads the published images, not copies: use it without data.copies"
        )

    def read(self) -> Parts:
        from bnlab.harness.artifacts.data.images import cifar10

        if self.copies:
            return cifar10.read_copies(self.root, self.size)
        return cifar10.read_published(self.root, self.download)
