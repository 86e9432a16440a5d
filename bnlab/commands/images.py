"""A folder of images as batches. Subfolders are classes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision has them
_STD = (0.229, 0.224, 0.225)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says how a folder of images becomes batches."""
    group = parser.add_argument_group(
        "a folder of images",
        "Images are cropped to a square about their center, resized, and normalized as (value - mean) / std, of values "
        "between 0 and 1. Two subfolders with images or more are classes 0, 1, ... in alphabetical order; the model "
        "must number them in this way. Images are in random order, the same each time.",
    )
    group.add_argument("--size", type=int, default=224, help="height and width in pixels; default 224")
    group.add_argument(
        "--mean",
        type=numbers,
        default=_MEAN,
        metavar="R,G,B",
        help="or one number for gray images; default 0.485,0.456,0.406, of ImageNet",
    )
    group.add_argument(
        "--std", type=numbers, default=_STD, metavar="R,G,B", help="as many; default 0.229,0.224,0.225, of ImageNet"
    )
    group.add_argument("--batch-size", type=int, default=64, help="images in a batch, best as in training; default 64")


# argparse names this function where a text cannot be read: "invalid numbers value".
def numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    return tuple(map(float, text.split(",")))


@dataclass(frozen=True)
class ImageFolder:
    """Batches of the images in a folder: (images, labels) where there are classes, else images [N, C, size, size].

    Attributes:
        paths: of the images, in the order in which they are read.
        labels: int64 [images]; None without classes.
        classes: number of classes.
        size: height and width in pixels.
        mean, std: of each channel; three channels are red, green and blue, one is gray.
        batch_size: images in a batch.
    """

    paths: Sequence[Path]
    labels: Tensor | None
    classes: int
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.paths), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            images = torch.stack([self._read(path) for path in self.paths[chosen]])
            yield images if self.labels is None else (images, self.labels[chosen])

    def describe_classes(self) -> str:
        """Say how subfolders are numbered, which the model must know."""
        return f"The {self.classes} subfolders are classes 0 to {self.classes - 1}, in alphabetical order."

    def _read(self, path: Path) -> Tensor:
        """Read an image, float32 [C, size, size]; ValueError if that fails."""
        # Pillow is optional: only a folder of images needs it.
        pillow = importlib.import_module("PIL.Image")
        operations = importlib.import_module("PIL.ImageOps")
        mode = "L" if len(self.mean) == 1 else "RGB"
        try:
            with pillow.open(path) as file:
                if file.mode.startswith(("I", "F")):  # Pillow would cut its values off at 255
                    raise ValueError(
                        f"{path}: has pixels of more than 8 bits (mode {file.mode}), and nothing says how they are "
                        "scaled; give the doctor a function that reads such images"
                    )
                # Pillow does not interpolate images with a palette, so that they are converted first.
                image = operations.fit(file.convert(mode), (self.size, self.size), pillow.Resampling.BILINEAR)
        # Pillow's error for a file that is no image is an OSError, too.
        except OSError as error:
            raise ValueError(f"{path}: cannot be read as an image ({error})") from error

        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        # The array of a gray image has no axis for channels.
        pixels = pixels.reshape(self.size, self.size, len(self.mean)).permute(2, 0, 1)
        mean = torch.tensor(self.mean, device="cpu").view(-1, 1, 1)
        std = torch.tensor(self.std, device="cpu").view(-1, 1, 1)
        return (pixels - mean) / std


def find_images(folder: Path, arguments: argparse.Namespace) -> ImageFolder:
    """Find the images in a folder and its subfolders.

    Args:
        folder: with images, or with a subfolder for each class.
        arguments: those of `add_image_arguments`.

    Raises:
        ValueError: there are none, an argument is wrong, or Pillow, which reads them, is not installed.
    """
    _require_arguments(arguments)
    if importlib.util.find_spec("PIL") is None:
        raise ValueError(f"{folder}: images are read by Pillow, which is not installed: pip install pillow")
    paths = _list_images(folder)
    if not paths:
        raise ValueError(f"{folder}: has no images; they end in {', '.join(sorted(_ENDINGS))}")

    names = [path.relative_to(folder).parts[0] for path in paths]
    classes = sorted(set(names))
    # Here and below the device is named, because the model's module may have called `torch.set_default_device`.
    generator = torch.Generator("cpu").manual_seed(0)
    # The sorted paths come class by class, and batches of a single class would have other statistics than in training.
    order = torch.randperm(len(paths), generator=generator, device="cpu").tolist()
    labels = None
    # If there are also images beside the subfolders, which belong to no class, the subfolders are not classes either.
    if len(classes) > 1 and not _list_images(folder, "*"):
        sorted_labels = torch.tensor([classes.index(name) for name in names], device="cpu")
        labels = sorted_labels[order]
    return ImageFolder(
        [paths[number] for number in order],
        labels,
        0 if labels is None else len(classes),
        arguments.size,
        arguments.mean,
        arguments.std,
        arguments.batch_size,
    )


def _list_images(folder: Path, pattern: str = "**/*") -> list[Path]:
    """List the images below a folder, without hidden files and folders, which notebooks and systems leave there."""
    images = [path for path in folder.glob(pattern) if path.suffix.lower() in _ENDINGS]
    return sorted(path for path in images if not _is_hidden(path.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _require_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a wrong argument."""
    channels = len(arguments.mean)
    if channels not in (1, 3) or len(arguments.std) != channels:
        raise ValueError(
            f"--mean has {channels} number(s), --std {len(arguments.std)}; give three of each, such as 0.5,0.5,0.5, or "
            "one of each for gray images"
        )
    if min(arguments.std) <= 0:
        raise ValueError(f"--std {min(arguments.std)}: give positive numbers")
    for name in ("size", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: give at least 1")
