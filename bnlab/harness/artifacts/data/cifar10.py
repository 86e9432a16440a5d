"""data=cifar10: torchvision downloads it, reads it, and knows its MD5 sums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from bnlab.common.vision import torchvision
from bnlab.harness.artifacts.data.base import Data, Parts, Size
from bnlab.harness.artifacts.data.pixels import read_items, shuffle
from bnlab.harness.components import component, setting
from bnlab.harness.errors import UserError, where_raised

_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
_FOLDER = "cifar-10-batches-py"


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
        if self.copies:
            return self._read_copies()

        read = torchvision().datasets.CIFAR10  # its files are pickles: opened after their MD5 sums have been verified
        try:
            parts = [read(self.root, train=is_train, download=self.download) for is_train in (True, False)]
        except Exception as error:  # where a file is corrupt torchvision raises almost any
            raise UserError(
                f"{self.name}: {where_raised(error)}; delete its files in {Path(self.root, _FOLDER)} and set "
                "data.download=true"
            ) from error
        images = [torch.as_tensor(part.data).permute(0, 3, 1, 2) for part in parts]
        labels = [torch.as_tensor(part.targets).long() for part in parts]
        return Parts((images[0], labels[0]), (images[1], labels[1]))

    def _read_copies(self) -> Parts:
        """Read image files, in an order that is drawn once for ever; UserError unless all are there."""
        read_folder = torchvision().datasets.ImageFolder
        try:
            folders = [read_folder(Path(self.root, part)) for part in ("train", "test")]
            # A folder lists class after class, so that a batch of test images would be of one class.
            train, test = [shuffle(*read_items(folder, range(len(folder)), folder.root)) for folder in folders]
        except Exception as error:
            raise UserError(
                f"{self.name}: {where_raised(error)}; there have to be train/<class>/ and test/<class>/ in {self.root}"
            ) from error

        if (len(folders[0]), len(folders[1])) != (self.size.available, self.size.test):
            raise UserError(
                f"{self.name}: {self.root} has {len(folders[0]):,} and {len(folders[1]):,} images; expected "
                f"{self.size.available:,} and {self.size.test:,}"
            )
        if folders[0].classes != folders[1].classes or len(folders[0].classes) != self.size.classes:
            raise UserError(
                f"{self.name}: {self.root} has the classes {', '.join(folders[0].classes)} in train and "
                f"{', '.join(folders[1].classes)} in test; expected the same {self.size.classes} folders in both"
            )
        shape = [3, self.size.pixels, self.size.pixels]
        if any([*images.shape[1:]] != shape for images, _ in (train, test)):
            raise UserError(
                f"{self.name}: images of {self.root} have the shapes {[*train[0].shape[1:]]} and "
                f"{[*test[0].shape[1:]]}; copies have to be {shape}, else give them as data of your own "
                "(docs/howto/own_code.md)"
            )
        return Parts(train, test)
