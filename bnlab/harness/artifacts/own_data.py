"""Images and labels from a function of the user's own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnlab.harness.artifacts.own import import_object
from bnlab.harness.errors import UserError, where_raised

Pixels = tuple[Tensor, Tensor]
"""uint8 images [N, C, H, W] and int64 labels [N]."""


@lru_cache(maxsize=2)
def read_own(path: str, arguments: tuple[tuple[str, Any], ...]) -> tuple[Pixels, Pixels]:
    """The training and the test part, as the function at this import path gives them for arguments and their values.

    The order of the images is drawn once for ever, as a folder has class after class.

    Raises UserError if it fails, or gives something else.
    """
    make = import_object(path)
    try:
        train, test = map(read_part, make(**dict(arguments)))
    except Exception as error:
        reason = f"{where_raised(error)}; it has to give the training and the test part, each (images, labels)"
        raise UserError(f"data={path}: {reason}, or a data set of such pairs") from error
    for images, labels in (train, test):
        is_of_images = images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] <= images.shape[3]
        if not is_of_images or len(images) != len(labels):
            raise UserError(
                f"data={path}: found {images.dtype} images {tuple(images.shape)} with {len(labels)} labels; it has "
                "to give uint8 images [N, C, H, W], and a label for each"
            )
    return shuffle(*train), shuffle(*test)


def shuffle(images: Tensor, labels: Tensor) -> Pixels:
    """In an order that is the same for ever."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order].long()


def read_part(part: Any) -> Pixels:
    """A pair of arrays, or a torchvision data set, whose images are PIL's or float tensors from 0 to 1."""
    if isinstance(part, tuple):
        images, labels = map(torch.as_tensor, part)
        return images, labels
    pairs = [part[index] for index in range(len(part))]
    pixels = [image if isinstance(image, Tensor) else torch.as_tensor(np.array(image)) for image, _ in pairs]
    images = torch.stack(pixels)
    if images.is_floating_point():
        images = (255 * images).round().to(torch.uint8)
    if images.dim() == 3:
        images = images[:, None]
    elif not isinstance(pairs[0][0], Tensor):
        images = images.permute(0, 3, 1, 2)
    return images, torch.as_tensor([int(label) for _, label in pairs])
