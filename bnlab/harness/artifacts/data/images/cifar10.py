"""CIFAR-10 as it is published, which torchvision downloads, reads, and knows the MD5 sums of; and copies as files."""

from __future__ import annotations

from pathlib import Path

import torch

from bnlab.common.vision import torchvision
from bnlab.harness.artifacts.data.images.pixels import read_items, shuffle
from bnlab.harness.artifacts.data.parts import Parts, Size
from bnlab.harness.errors import UserError, where_raised


def read_published(root: str, download: bool) -> Parts:
    """Read the published files; UserError where one is corrupt."""
    read = torchvision().datasets.CIFAR10  # its files are pickles: opened after their MD5 sums have been verified
    try:
        parts = [read(root, train=is_train, download=download) for is_train in (True, False)]
    except Exception as error:  # where a file is corrupt torchvision raises almost any
        folder = Path(root, read.base_folder)
        raise UserError(
            f"cifar10: {where_raised(error)}; delete its files in {folder} and set data.download=true"
        ) from error
    images = [torch.as_tensor(part.data).permute(0, 3, 1, 2) for part in parts]
    labels = [torch.as_tensor(part.targets).long() for part in parts]
    return Parts((images[0], labels[0]), (images[1], labels[1]))


def read_copies(root: str, size: Size) -> Parts:
    """Read image files, in an order that is drawn once for ever; UserError unless all are there."""
    read_folder = torchvision().datasets.ImageFolder
    try:
        folders = [read_folder(Path(root, part)) for part in ("train", "test")]
        # A folder lists class after class, so that a batch of test images would be of one class.
        train, test = [shuffle(*read_items(folder, range(len(folder)), folder.root)) for folder in folders]
    except Exception as error:
        raise UserError(
            f"cifar10: {where_raised(error)}; there have to be train/<class>/ and test/<class>/ in {root}"
        ) from error

    if (len(folders[0]), len(folders[1])) != (size.available, size.test):
        raise UserError(
            f"cifar10: {root} has {len(folders[0]):,} and {len(folders[1]):,} images; expected {size.available:,} and "
            f"{size.test:,}"
        )
    if folders[0].classes != folders[1].classes or len(folders[0].classes) != size.classes:
        raise UserError(
            f"cifar10: {root} has the classes {', '.join(folders[0].classes)} in train and "
            f"{', '.join(folders[1].classes)} in test; expected the same {size.classes} folders in both"
        )
    shape = [3, size.pixels, size.pixels]
    if any([*images.shape[1:]] != shape for images, _ in (train, test)):
        raise UserError(
            f"cifar10: images of {root} have the shapes {[*train[0].shape[1:]]} and {[*test[0].shape[1:]]}; copies "
            f"have to be {shape}, else give them as data of your own (docs/howto/own_code.md)"
        )
    return Parts(train, test)
