"""Data sets that others have published: torchvision downloads them, reads them, and knows their MD5 sums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from bnlab.harness.artifacts.data.base import Data, Parts, Size
from bnlab.harness.artifacts.data.pixels import Pixels, read_part, shuffle
from bnlab.harness.components import setting
from bnlab.harness.errors import UserError, where_raised
from bnlab.vision import torchvision


class Source(NamedTuple):
    """The origin and the size of a data set.

    Attributes:
        reader: class in torchvision.datasets.
        url: where its files are.
        file: the first of its files, below `root`.
        size: images of training and validation, test images, pixels in a row, classes.
        parts: what the reader calls the training and the test part.
    """

    reader: str
    url: str
    file: str
    size: Size
    parts: tuple[Any, Any] = (True, False)


@dataclass(unsafe_hash=True)
class Published(Data):
    """A data set that torchvision downloads."""

    source: ClassVar[Source]
    unread: ClassVar[tuple[str, ...]] = ("root", "download")
    storage: ClassVar[tuple[str, ...]] = ("root", "download")

    root: str = setting("data", "the folder in which it is")
    download: bool = setting(False, "download it if it is not there")
    copies: bool = setting(
        False,
        "read it from image files in `train/<class>/` and `test/<class>/` below `data.root`, such as JPEG copies",
    )

    def size(self) -> Size:
        return self.source.size

    def check(self) -> None:
        if not self.download:
            self._require_file()
        super().check()

    def _require_file(self) -> None:
        """Raise UserError unless the data set's first file is there, of copies their folder."""
        if self.copies:
            file = Path(self.root) / "train"
            what_to_do = "set data.root to the folder that has train/<class>/ and test/<class>/"
        else:
            file = Path(self.root) / self.source.file
            what_to_do = f"set data.download=true, or put the files of {self.source.url} there"
        if file.exists():
            return
        raise UserError(f"{self.name}: {file} is missing; {what_to_do}")

    def read(self) -> Parts:
        return self._read_copies() if self.copies else self._read_published()

    def _read_published(self) -> Parts:
        """Read it with torchvision; UserError for files that are corrupt, and for a download that fails."""
        reader = getattr(torchvision().datasets, self.source.reader)
        try:
            train, test = [_unpack(reader(self.root, part, download=self.download)) for part in self.source.parts]
        except Exception as error:  # where a file is corrupt torchvision raises almost any
            folder = (Path(self.root) / self.source.file).parent
            raise UserError(
                f"{self.name}: {where_raised(error)}; delete its files in {folder} and set data.download=true"
            ) from error
        return Parts(train, test)

    def _read_copies(self) -> Parts:
        """Read image files, in an order that is drawn once for ever; UserError unless all are there."""
        read_folder = torchvision().datasets.ImageFolder
        try:
            folders = [read_folder(Path(self.root) / part) for part in ("train", "test")]
            train, test = [shuffle(*read_part(folder, folder.root)) for folder in folders]
        except Exception as error:
            raise UserError(
                f"{self.name}: {where_raised(error)}; there have to be train/<class>/ and test/<class>/ in {self.root}"
            ) from error

        images, _ = train
        test_images, _ = test
        self._check_counts(len(images), len(test_images))
        pixels = self.source.size.pixels
        has_same_classes = folders[0].classes == folders[1].classes
        shapes = {images.shape[2:], test_images.shape[2:]}
        if not has_same_classes or shapes != {(pixels, pixels)}:
            raise UserError(
                f"{self.name}: images in {self.root} have to be {pixels}×{pixels}, in the same classes in "
                "train/ and test/"
            )
        return Parts(train, test)

    def _check_counts(self, train: int, test: int) -> None:
        """Raise UserError unless there are as many images as were published."""
        size = self.source.size
        if (train, test) != (size.available, size.test):
            expected = f"expected {size.available:,} and {size.test:,}"
            raise UserError(f"{self.name}: {self.root} has {train:,} and {test:,} images; {expected}")


@dataclass(unsafe_hash=True)
class Flippable(Published):
    """A published data set whose classes stay the same in a mirror."""

    flip: bool = setting(False, "augmentation: random horizontal flip")

    @property
    def flips(self) -> bool:
        return self.flip


def _unpack(part: Any) -> Pixels:
    # CIFAR's files are pickles: torchvision opens them only after their MD5 sums have been verified.
    classes = part.labels if hasattr(part, "labels") else part.targets
    labels = torch.as_tensor(classes).long()

    images = torch.as_tensor(part.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images, labels
