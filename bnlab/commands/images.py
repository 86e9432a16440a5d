"""A folder of images as batches. Subfolders are classes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision has them
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the input of a model. The default is how torchvision evaluates most models on ImageNet.

    Attributes:
        size: height and width in pixels of the square that is cropped about the center.
        resize: pixels of the shorter side before that.
        mean, std: of each channel; three channels are red, green and blue, one is gray.
        interpolation: Pillow's name of it.
    """

    size: int = 224
    resize: int = 256
    mean: Sequence[float] = _MEAN
    std: Sequence[float] = _STD
    interpolation: str = "bilinear"

    def describe(self) -> str:
        """Say what was done to the images."""
        mean = ",".join(map("{:g}".format, self.mean))
        std = ",".join(map("{:g}".format, self.std))
        if self.resize == self.size:
            cropped = f"cropped to a square and resized to {self.size} × {self.size}"
        else:
            cropped = f"resized to {self.resize} (shorter side) and cropped to {self.size} × {self.size}"
        return f"Images were {cropped}, and normalized by mean {mean} and std {std}."


def choose_preparation(base: Preparation, arguments: argparse.Namespace) -> Preparation:
    """Change what the arguments of `add_image_arguments` name; ValueError if one of them is wrong."""
    given = {name: getattr(arguments, name) for name in ("size", "resize", "mean", "std")}
    # Who names only a size has images of about that size, such as CIFAR-10's, which are not to lose a border.
    if given["resize"] is None:
        given["resize"] = given["size"]
    chosen = replace(base, **{name: value for name, value in given.items() if value is not None})

    channels = len(chosen.mean)
    if channels not in (1, 3) or len(chosen.std) != channels:
        raise ValueError(
            f"--mean has {channels} number(s), --std {len(chosen.std)}; give three of each, such as 0.5,0.5,0.5, or "
            "one of each for gray images"
        )
    if min(chosen.std) <= 0:
        raise ValueError(f"--std {min(chosen.std)}: give positive numbers")
    if chosen.size < 1:
        raise ValueError(f"--size {chosen.size}: give at least 1")
    if chosen.resize < chosen.size:
        raise ValueError(f"--resize {chosen.resize}: give at least the size, {chosen.size}, which is cropped from it")
    return chosen


@dataclass(frozen=True)
class ImageFolder:
    """Batches of the images in a folder: (images, labels) where there are classes, else images [N, C, size, size].

    Attributes:
        paths: of the images, in the order in which they are read.
        labels: int64 [images]; None without classes.
        classes: names of the subfolders that are classes, in their order; empty without.
        preparation: how each image is read.
        batch_size: most images in a batch.
        note: why subfolders are no classes, "" if there is nothing to say.
    """

    paths: Sequence[Path]
    labels: Tensor | None
    classes: Sequence[str]
    preparation: Preparation
    batch_size: int
    note: str = ""

    def __iter__(self) -> Iterator[Any]:
        # Of equal size as nearly as possible: a small rest would look like the small last batch of somebody's training,
        # and have poor statistics of its own.
        batches = math.ceil(len(self.paths) / self.batch_size)
        for chosen in torch.arange(len(self.paths), device="cpu").tensor_split(batches):
            images = torch.stack([self._read(self.paths[number]) for number in chosen.tolist()])
            yield images if self.labels is None else (images, self.labels[chosen])

    def describe(self) -> Iterator[str]:
        """Say how images were prepared and subfolders are numbered, which have to be as the model knows them."""
        yield self.preparation.describe()
        if self.classes:
            last = len(self.classes) - 1
            yield f"The {len(self.classes):,} subfolders are classes 0 to {last:,}, in alphabetical order."
        if self.note:
            yield self.note

    def _read(self, path: Path) -> Tensor:
        """Read an image, float32 [C, size, size]; ValueError if that fails."""
        # Pillow is optional: only a folder of images needs it.
        pillow = importlib.import_module("PIL.Image")
        made = self.preparation
        mode = "L" if len(made.mean) == 1 else "RGB"
        try:
            with pillow.open(path) as file:
                stored = file.mode
                # Pillow does not interpolate images with a palette, so that they are converted first.
                image = file.convert(mode)
        # Of a file that is no image, that is cut off, or suspiciously large Pillow raises errors of several kinds.
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as an image ({error})") from error
        if stored.startswith(("I", "F")):  # Pillow has cut its values off at 255
            raise ValueError(
                f"{path}: has pixels of more than 8 bits (mode {stored}), and nothing says how they are scaled; give "
                "the doctor a function that reads such images"
            )

        square = _crop(image, made, pillow)
        pixels = torch.from_numpy(np.array(square, dtype=np.float32) / 255)
        # The array of a gray image has no axis for channels.
        pixels = pixels.reshape(made.size, made.size, len(made.mean)).permute(2, 0, 1)
        mean = torch.tensor(made.mean, device="cpu").view(-1, 1, 1)
        std = torch.tensor(made.std, device="cpu").view(-1, 1, 1)
        return (pixels - mean) / std


def _crop(image: Any, made: Preparation, pillow: Any) -> Any:
    """Resize an image of Pillow's and crop its center, to the pixel as torchvision's `Resize` and `CenterCrop` do."""
    shorter = min(image.size)
    width, height = [made.resize * length // shorter for length in image.size]
    resized = image.resize((width, height), pillow.Resampling[made.interpolation.upper()])
    left = round((width - made.size) / 2)
    top = round((height - made.size) / 2)
    return resized.crop((left, top, left + made.size, top + made.size))


def find_images(folder: Path, arguments: argparse.Namespace, base: Preparation) -> ImageFolder:
    """Find the images in a folder and its subfolders.

    Args:
        folder: with images, or with a subfolder for each class.
        arguments: those of `add_image_arguments`.
        base: how images are prepared where the arguments do not say it.

    Raises:
        ValueError: there are none, a class has none, an argument is wrong, or Pillow, which reads them, is not
            installed.
    """
    preparation = choose_preparation(base, arguments)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size}: give at least 1")
    if importlib.util.find_spec("PIL") is None:
        raise ValueError(f"{folder}: images are read by Pillow, which is not installed: pip install pillow")
    paths = _list_images(folder)
    if not paths:
        raise ValueError(f"{folder}: has no images; they end in {', '.join(sorted(_ENDINGS))}")

    # Here and below the device is named, because the model's module may have called `torch.set_default_device`.
    generator = torch.Generator("cpu").manual_seed(0)
    # The sorted paths come class by class, and batches of a single class would have other statistics than in training.
    order = torch.randperm(len(paths), generator=generator, device="cpu").tolist()
    in_order = [paths[number] for number in order]

    beside = [path for path in paths if path.parent == folder]
    names = [path.relative_to(folder).parts[0] for path in in_order]
    classes = sorted({*names} - {path.name for path in beside})
    without = ImageFolder(in_order, None, (), preparation, arguments.batch_size)
    if len(classes) < 2:
        return without
    if beside:
        others = "" if len(beside) == 1 else f" and {len(beside) - 1:,} more"
        note = (
            f"The {len(classes):,} subfolders are not taken for classes, as there are images beside them "
            f"({beside[0].name}{others}), so nothing is known of labels."
        )
        return replace(without, note=note)
    _require_all(folder, classes)
    numbers_of = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers_of[name] for name in names], device="cpu")
    return replace(without, labels=labels, classes=classes)


def _require_all(folder: Path, classes: Sequence[str]) -> None:
    """Raise ValueError if a subfolder has no images: those after it would get the number before their own."""
    subfolders = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = sorted(subfolders - {*classes})
    if empty:
        some = ", ".join(empty[:3])
        raise ValueError(
            f"{folder}: {len(empty):,} of {len(subfolders):,} subfolders have no images ({some}), and subfolders are "
            f"numbered as classes; put images there, which end in {', '.join(sorted(_ENDINGS))}, or take these away if "
            "they are no classes"
        )


def _list_images(folder: Path) -> list[Path]:
    """List the images below a folder, without hidden files and folders, which notebooks and systems leave there."""
    images = []
    # Subsets of data sets are often folders of links.
    for place, folders, files in os.walk(folder, followlinks=True):
        # These it goes into: no hidden ones, and no links to a folder that it has come from.
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(Path(place, name))]
        shown = [Path(place, name) for name in files if not name.startswith(".")]
        images += [path for path in shown if path.suffix.lower() in _ENDINGS]
    # By their parts, because Windows compares paths without case, and the same seed would then choose other images.
    return sorted(images, key=lambda path: path.parts)


def _leads_back(folder: Path) -> bool:
    """Return whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
