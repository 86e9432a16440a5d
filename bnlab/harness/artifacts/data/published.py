"""Data sets that others have published: torchvision downloads them, reads them, and knows their MD5 sums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from bnlab.harness.artifacts.data.base import Data, Parts, Size
from bnlab.harness.artifacts.data.pixels import Pixels, read_part, shuffle
from bnlab.harness.components import component, setting
from bnlab.harness.errors import UserError, where_raised
from bnlab.vision import torchvision


class Origin(NamedTuple):
    """The origin and the size of a data set."""

    reader: str  # class in torchvision.datasets
    url: str
    file: str  # the first of its files, below `root`
    size: Size
    parts: tuple[Any, Any] = (True, False)  # what the reader calls the training and the test part


@dataclass(unsafe_hash=True)
class Published(Data):
    """A data set that torchvision downloads."""

    origin: ClassVar[Origin]
    unread: ClassVar[tuple[str, ...]] = ("root", "download")
    storage: ClassVar[tuple[str, ...]] = ("root", "download")

    root: str = setting("data", "the folder in which it is")
    download: bool = setting(False, "download it if it is not there")
    copies: bool = setting(
        False,
        "read it from image files in `train/<class>/` and `test/<class>/` below `data.root`, such as JPEG copies",
    )

    def find_size(self) -> Size:
        return self.origin.size

    def check(self) -> None:
        if self.copies:
            file = Path(self.root) / "train"
            what_to_do = "set data.root to the folder that has train/<class>/ and test/<class>/"
        else:
            file = Path(self.root) / self.origin.file
            what_to_do = f"set data.download=true, or put the files of {self.origin.url} there"
        if not self.download and not file.exists():
            raise UserError(f"{self.name}: {file} is missing; {what_to_do}")
        super().check()

    def read(self) -> Parts:
        if self.copies:
            return self._read_copies()

        reader = getattr(torchvision().datasets, self.origin.reader)
        try:
            train, test = [_unpack(reader(self.root, part, download=self.download)) for part in self.origin.parts]
        except Exception as error:  # where a file is corrupt torchvision raises almost any
            folder = (Path(self.root) / self.origin.file).parent
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

        size = self.origin.size
        if (len(folders[0]), len(folders[1])) != (size.available, size.test):
            raise UserError(
                f"{self.name}: {self.root} has {len(folders[0]):,} and {len(folders[1]):,} images; expected "
                f"{size.available:,} and {size.test:,}"
            )
        return Parts(train, test)


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


@dataclass(unsafe_hash=True)
class Flippable(Published):
    """A published data set whose classes stay the same in a mirror."""

    flip: bool = setting(False, "augmentation: random horizontal flip")


@component
@dataclass(unsafe_hash=True)
class Cifar10(Flippable):
    """Small photographs of ten classes (Krizhevsky 2009), 32×32 pixels."""

    name: str = "cifar10"
    origin: ClassVar[Origin] = Origin(
        reader="CIFAR10",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        file="cifar-10-batches-py/data_batch_1",
        size=Size(available=50_000, test=10_000, pixels=32, classes=10),
    )


@component
@dataclass(unsafe_hash=True)
class Cifar100(Flippable):
    """Small photographs of a hundred classes (Krizhevsky 2009), 32×32 pixels."""

    name: str = "cifar100"
    origin: ClassVar[Origin] = Origin(
        reader="CIFAR100",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        file="cifar-100-python/train",
        size=Size(available=50_000, test=10_000, pixels=32, classes=100),
    )


@component
@dataclass(unsafe_hash=True)
class FashionMnist(Flippable):
    """Pictures of clothes (Xiao et al. 2017), 28×28 pixels."""

    name: str = "fashion_mnist"
    origin: ClassVar[Origin] = Origin(
        reader="FashionMNIST",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        file="FashionMNIST/raw/train-images-idx3-ubyte",
        size=Size(available=60_000, test=10_000, pixels=28, classes=10),
    )


@component
@dataclass(unsafe_hash=True)
class Mnist(Published):
    """Handwritten digits (LeCun et al. 1998), 28×28 pixels."""

    name: str = "mnist"
    origin: ClassVar[Origin] = Origin(
        reader="MNIST",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        file="MNIST/raw/train-images-idx3-ubyte",
        size=Size(available=60_000, test=10_000, pixels=28, classes=10),
    )


@component
@dataclass(unsafe_hash=True)
class Svhn(Published):
    """House numbers (Netzer et al. 2011), 32×32 pixels."""

    name: str = "svhn"
    origin: ClassVar[Origin] = Origin(
        reader="SVHN",
        url="http://ufldl.stanford.edu/housenumbers/",
        file="train_32x32.mat",
        size=Size(available=73_257, test=26_032, pixels=32, classes=10),
        parts=("train", "test"),
    )
