"""Data sets that others have published: what they are, and reading them with torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from bnlab.harness.artifacts.pixels import Pixels, read_part, shuffle
from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.errors import UserError, where_raised


class Published(NamedTuple):
    """A data set that torchvision downloads, reads, and knows the MD5 sums of."""

    reader: str  # class in torchvision.datasets
    url: str
    file: str  # the first of its files, below root
    train: int  # images
    test: int
    size: int  # pixels
    classes: int = 10


_IDX = "raw/train-images-idx3-ubyte"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
PUBLISHED = {
    "mnist": Published("MNIST", _MNIST, f"MNIST/{_IDX}", 60_000, 10_000, 28),
    "fashion_mnist": Published("FashionMNIST", _FASHION, f"FashionMNIST/{_IDX}", 60_000, 10_000, 28),
    "cifar10": Published("CIFAR10", _CIFAR, "cifar-10-batches-py/data_batch_1", 50_000, 10_000, 32),
    "cifar100": Published("CIFAR100", _CIFAR, "cifar-100-python/train", 50_000, 10_000, 32, 100),
    "svhn": Published("SVHN", _SVHN, "train_32x32.mat", 73_257, 26_032, 32),
}


def require_file(name: str, root: Path, copies: bool) -> None:
    """UserError unless the data set's first file is there, of copies their folder."""
    file = root / ("train" if copies else PUBLISHED[name].file)
    if not file.exists():
        files = f"set data.download=true, or put the files of {PUBLISHED[name].url} there"
        folders = "set data.root to the folder that has train/<class>/ and test/<class>/"
        raise UserError(f"{name}: {file} is missing; {folders if copies else files}")


def read_published(name: str, root: Path, *, download: bool) -> tuple[Pixels, Pixels]:
    """The training and the test part; UserError for files that are corrupt, and for a download that fails."""
    reader = getattr(torchvision().datasets, PUBLISHED[name].reader)
    splits = ("train", "test") if name == "svhn" else (True, False)
    try:
        train, test = (_unpack(reader(str(root), split, download=download)) for split in splits)
    except Exception as error:  # where a file is corrupt torchvision raises almost any
        folder = (root / PUBLISHED[name].file).parent
        raise UserError(
            f"{name}: {where_raised(error)}; delete its files in {folder} and set data.download=true"
        ) from error
    return train, test


def read_copies(name: str, root: Path) -> tuple[Pixels, Pixels]:
    """Image files in train/<class>/, test/<class>/, in an order that is drawn once for ever; UserError unless all."""
    try:
        folders = [torchvision().datasets.ImageFolder(root / part) for part in ("train", "test")]
        parts = [shuffle(*read_part(folder, folder.root)) for folder in folders]
    except Exception as error:
        raise UserError(
            f"{name}: {where_raised(error)}; there have to be train/<class>/ and test/<class>/ in {root}"
        ) from error
    counts, expected = [len(labels) for _, labels in parts], [PUBLISHED[name].train, PUBLISHED[name].test]
    if counts != expected:
        raise UserError(
            f"{name}: {root} has {counts[0]:,} and {counts[1]:,} images; expected {expected[0]:,} and {expected[1]:,}"
        )
    size, classes = PUBLISHED[name].size, folders[0].classes
    if classes != folders[1].classes or {images.shape[2:] for images, _ in parts} != {(size, size)}:
        raise UserError(f"{name}: images in {root} have to be {size}×{size}, in the same classes in train/ and test/")
    return parts[0], parts[1]


def _unpack(part: Any) -> Pixels:
    # CIFAR's files are pickles: torchvision opens them only after their MD5 sums have been verified.
    images = torch.as_tensor(part.data)
    labels = torch.as_tensor(part.labels if hasattr(part, "labels") else part.targets)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images, labels.long()
