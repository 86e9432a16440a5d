"""Images of batches: the one that is scaled most unlike the others, and copies in other colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import list_tensors, map_batch

OUTLYING = 10.0  # standard deviations of an image over the median one's, which contrast hardly ever reaches


@dataclass(frozen=True)
class Outlier:
    """The image of the largest standard deviation.

    Attributes:
        number: of the image, in the order of the batches, from 0.
        ratio: its standard deviation over that of the median image.
    """

    number: int
    ratio: float


def find_outlier(data: Sequence[Any]) -> Outlier | None:
    """Find the image of the largest standard deviation; None where batches are no images [N, ...] of numbers."""
    parts = []
    for batch in data:
        images = next(list_tensors(batch), None)
        if images is None or images.dim() < 3 or not images.is_floating_point():
            return None
        values = images.detach().flatten(1).double()
        parts.append(values.std(1, correction=0))

    sigmas = torch.cat(parts).cpu()
    largest = int(sigmas.argmax())
    ratio = sigmas[largest] / sigmas.median()
    return Outlier(largest, float(ratio))


def find_images(batch: Any) -> Tensor | None:
    """Find the images [N, C, H, W] that a batch begins with; None where it begins with something else."""
    first = next(list_tensors(batch), None)
    return first if first is not None and first.dim() == 4 and first.is_floating_point() else None


def change_images(batches: Sequence[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    """Change the first tensor [N, C, H, W] of each batch."""

    def change_one(batch: Any) -> Any:
        images = next(list_tensors(batch))
        return map_batch(lambda leaf: change(leaf) if leaf is images else leaf, batch)

    return [change_one(batch) for batch in batches]


def invert_images(batches: Sequence[Any]) -> list[Any]:
    """Turn images [N, C, H, W] into their negatives: the sum of a channel's extremes, minus its values."""
    largest = []
    smallest = []
    for batch in batches:
        images = next(list_tensors(batch))
        largest.append(images.amax((0, 2, 3)))
        smallest.append(images.amin((0, 2, 3)))

    top = torch.stack(largest).amax(0)
    bottom = torch.stack(smallest).amin(0)
    total = (top + bottom).view(-1, 1, 1)
    return change_images(batches, lambda part: total - part)
