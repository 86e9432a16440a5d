"""A folder of images as batches. Subfolders are classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from bnlab.common.vision import torchvision

Transform = Callable[[Any], Tensor]
"""Makes the model's input [3, H, W] of an image of Pillow's."""


@dataclass(frozen=True)
class ImageFolder:
    """Batches of the images in a folder: (images, labels) where there are classes, else images [N, 3, H, W].

    Attributes:
        loader: loads images and labels, which mean nothing without classes.
        transform: what has been done to each image.
        classes: names of the subfolders that are classes, in their order; empty without.
        note: why subfolders are no classes, "" if there is nothing to say.
    """

    loader: DataLoader[Any]
    transform: Transform
    classes: Sequence[str]
    note: str = ""

    def __iter__(self) -> Iterator[Any]:
        for images, labels in self.loader:
            yield (images, labels) if self.classes else images

    def describe(self) -> Iterator[str]:
        """Say how images were prepared and subfolders are numbered, which have to be as the model knows them."""
        yield f"Images were prepared by {' '.join(str(self.transform).split())}."
        if self.classes:
            last = len(self.classes) - 1
            yield f"The {len(self.classes):,} subfolders are classes 0 to {last:,}, in alphabetical order."
        if self.note:
            yield self.note


class _Unlabelled(Dataset[Any]):
    """Images beside each other in a folder. All are given the label 0."""

    def __init__(self, folder: Path, transform: Transform) -> None:
        endings = torchvision().datasets.folder.IMG_EXTENSIONS
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
        if not self.paths:
            raise ValueError(f"{folder}: has no images, nor subfolders with images; they end in {', '.join(endings)}")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = torchvision().datasets.folder.default_loader(self.paths[number])
        return self.transform(image), 0


def open_folder(folder: Path, transform: Transform, batch_size: int) -> ImageFolder:
    """Find the images in a folder, or in its subfolders, which are classes if there are at least two.

    Raises:
        ValueError: there are none, or `batch_size` is not positive.
        FileNotFoundError: a subfolder has none.
    """
    classes: Sequence[str] = ()
    if any(entry.is_dir() for entry in folder.iterdir()):
        images = torchvision().datasets.ImageFolder(folder, transform)
        # Predictions cannot be judged by labels that are all the same.
        if len(images.classes) > 1:
            classes = images.classes
    else:
        images = _Unlabelled(folder, transform)

    # Images are listed class by class, and batches of a single class would have other statistics than in training.
    order = np.random.default_rng(0).permutation(len(images))
    # Of equal size as nearly as possible: a small rest would look like the small last batch of somebody's training.
    batches = np.array_split(order, len(BatchSampler(order, batch_size, drop_last=False)))
    loader = DataLoader(images, batch_sampler=[batch.tolist() for batch in batches])
    return ImageFolder(loader, transform, classes)
