"""Images and labels as a data set gives them: how they are read, their order, drawn once for ever, and their digest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bnlab.common.files import digest
from bnlab.harness.errors import UserError

if TYPE_CHECKING:
    from bnlab.harness.artifacts.data.parts import Pixels


def read_items(part: Any, chosen: Iterable[int], where: str) -> Pixels:
    """Read these items of a data set, each an image and its label."""
    items = [part[index] for index in chosen]
    images = torch.stack([_read_image(image) for image, _ in items])
    labels = torch.stack([_read_values(label) for _, label in items])
    return check_pixels(images, labels, where)


def _read_image(image: Any) -> Tensor:
    """Read an image [C, H, W] from a tensor [C, H, W] or [H, W], an array [H, W, C] or [H, W], or one of PIL's."""
    values = _read_values(image)
    if values.dim() == 2:
        return values[None]
    return values if isinstance(image, Tensor) else values.permute(2, 0, 1)


def _read_values(values: Any) -> Tensor:
    # A copy of the others, because torch warns of arrays that cannot be written, such as those of PIL's images.
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.array(values))


def check_pixels(images: Any, labels: Any, where: str) -> Pixels:
    """Check images [N, C, H, W] and labels [N, ...], and give them the types in which they are kept."""
    images, labels = _read_values(images), _read_values(labels)
    labels = labels.float() if labels.is_floating_point() else labels.long()
    if images.dim() != 4 or images.shape[1] > min(images.shape[2:]) or not len(images):
        raise UserError(f"{where} has images of shape {list(images.shape)}; they have to be [N, C, H, W]")
    if images.is_floating_point():
        images = images.float()
    elif images.dtype != torch.uint8:
        raise UserError(
            f"{where} has {describe_images(images)} images; they have to be bytes from 0 to 255 (uint8) or floats"
        )
    for name, values in (("pixels", images), ("labels", labels)):
        faulty = (~values.flatten(1).isfinite().all(1)) if values.dim() > 1 else ~values.isfinite()
        if faulty.any():
            first = int(faulty.nonzero()[0])
            count = int(faulty.sum())
            raise UserError(f"{where} has NaN or infinite {name} in {count:,} of its items, as item {first}")
    if labels.dim() < 1 or len(labels) != len(images):
        raise UserError(
            f"{where} has {len(images):,} images, and labels of shape {list(labels.shape)}; give each image a label"
        )
    return images, labels


def describe_images(images: Tensor) -> str:
    """Describe images [..., C, H, W] by type, channels, height and width: `uint8 [3, 32, 32]`."""
    kind = str(images.dtype).removeprefix("torch.")
    return f"{kind} {list(images.shape[-3:])}"


def shuffle(images: Tensor, labels: Tensor) -> Pixels:
    """Put a part into an order that is drawn once for ever."""
    order = draw_order(len(labels))
    return images[order], labels[order]


def draw_order(count: int) -> Tensor:
    """Draw an order of so many images, int64 [count]."""
    # One seed for ever: a split that moved with the run's seed would mix training and test images.
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def digest_pixels(images: Tensor, labels: Tensor) -> str:
    """Digest images, labels and their order, to sixteen hexadecimal digits."""
    pixels = images.contiguous().numpy().data
    values = labels.contiguous().numpy().data
    # Labels that are classes are known by their numbers alone.
    kind = "" if labels.dim() == 1 and labels.dtype == torch.int64 else f"{labels.dtype} {tuple(labels.shape)}"
    return digest(repr(tuple(images.shape)), kind, pixels, values, digits=16)
