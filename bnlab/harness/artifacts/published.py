"""Data sets that others have published: what they are, and reading them with torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.errors import UserError


@dataclass(frozen=True)
class Published:
    """A data set that torchvision reads."""

    reader: str  # class in torchvision.datasets
    url: str
    archives: tuple[str, ...]  # file names at `url`
    folder: str  # where torchvision looks for the archives, below root
    files: tuple[str, ...]  # what is read, below root
    train: int  # images
    test: int
    size: int  # pixels
    classes: int = 10


_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _describe_idx(reader: str, url: str) -> Published:
    folder = f"{reader}/raw"
    files = tuple(f"{folder}/{name}" for name in _IDX)
    return Published(reader, url, tuple(f"{name}.gz" for name in _IDX), folder, files, 60_000, 10_000, 28)


def _describe_cifar(classes: int, folder: str, files: tuple[str, ...]) -> Published:
    archive = f"cifar-{classes}-python.tar.gz"
    files = tuple(f"{folder}/{name}" for name in files)
    url = "https://www.cs.toronto.edu/~kriz/"
    return Published(f"CIFAR{classes}", url, (archive,), ".", files, 50_000, 10_000, 32, classes)


_SVHN = ("train_32x32.mat", "test_32x32.mat")
_CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
PUBLISHED = {
    "mnist": _describe_idx("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion_mnist": _describe_idx("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
    "cifar10": _describe_cifar(10, "cifar-10-batches-py", _CIFAR10),
    "cifar100": _describe_cifar(100, "cifar-100-python", ("train", "test", "meta")),
    "svhn": Published("SVHN", "http://ufldl.stanford.edu/housenumbers/", _SVHN, ".", _SVHN, 73_257, 26_032, 32),
}


def read_published(name: str, root: Path, *, download: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """uint8 images [N, C, H, W] and int64 labels [N] of the training and of the test part.

    Raises UserError for files that are missing or corrupt, and for a download that fails.
    """
    if download and not all((root / file).is_file() for file in PUBLISHED[name].files):
        _download(name, root)
    require_files(name, root)
    return _read_part(name, root, "train"), _read_part(name, root, "test")


def require_files(name: str, root: Path) -> None:
    """UserError for one that is missing."""
    for file in PUBLISHED[name].files:
        if not (root / file).is_file():
            raise UserError(f"{name}: {root / file} is missing; {_advise(name, root)}")


def _find_reader(source: Published) -> Any:
    return getattr(torchvision().datasets, source.reader)


def _name_part(source: Published, part: str) -> dict[str, str | bool]:
    return {"split": part} if source.reader == "SVHN" else {"train": part == "train"}


def _download(name: str, root: Path) -> None:
    source = PUBLISHED[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):  # two processes would write into the same file
            for part in ("train", "test"):
                _find_reader(source)(str(root), download=True, **_name_part(source, part))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: download failed ({reason}); {_advise(name, root)}") from error


def _read_part(name: str, root: Path, part: str) -> tuple[Tensor, Tensor]:
    source = PUBLISHED[name]
    # CIFAR's files are pickles: torchvision opens them only after their MD5 sums have been verified.
    try:
        data = _find_reader(source)(str(root), download=False, **_name_part(source, part))
        images = torch.as_tensor(data.data)
        labels = torch.as_tensor(data.labels if source.reader == "SVHN" else data.targets).long()
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        suspects = _list_suspects(source, root, part)
        raise UserError(f"{name}: corrupt: {suspects}; delete and {_advise(name, root)}") from error
    expected = getattr(source, part)
    if len(images) != expected or len(labels) != expected:
        found = f"{len(images):,} {part} images and {len(labels):,} labels instead of {expected:,}"
        raise UserError(f"{name}: {found} in {root}; delete them and {_advise(name, root)}")
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif source.reader.startswith("CIFAR"):
        images = images.permute(0, 3, 1, 2)
    return images, labels


def _list_suspects(source: Published, root: Path, part: str) -> str:
    """Files that torchvision's MD5 sums reject; MNIST's unpacked files have none: both files of the part."""
    reader = _find_reader(source)
    if source.reader == "SVHN":
        sums = {name: md5 for _, name, md5 in reader.split_list.values()}
    elif source.reader.startswith("CIFAR"):
        sums = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    else:
        prefix = "train" if part == "train" else "t10k"
        return " or ".join(str(root / name) for name in source.files if Path(name).name.startswith(prefix))
    intact = torchvision().datasets.utils.check_integrity
    return ", ".join(str(root / name) for name in source.files if not intact(root / name, sums[Path(name).name]))


def _advise(name: str, root: Path) -> str:
    source = PUBLISHED[name]
    folder = root / source.folder
    archives = ", ".join(source.archives)
    return f"set data.download=true (without a network, first put {archives} from {source.url} into {folder})"
