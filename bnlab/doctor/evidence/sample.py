"""A sample of the images, and its halves: what one half proposes is judged on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bnlab.model.batches import count_images, map_batch, take_images

MOST_IMAGES = 1000  # that undos are judged by


def split_halves(data: Sequence[Any]) -> list[list[Any]]:
    """Split batches into two halves of nearly as many images; a single one is cut, if it can be."""
    if len(data) > 1:
        # Alternating, because in sorted data the first half has other classes than the second.
        return [list(data[::2]), list(data[1::2])]
    batch = data[0]
    half = take_images(batch, max(1, count_images(batch) // 2))
    if count_images(half) == count_images(batch):
        return [list(data)]
    return [[half], [_drop_images(batch, count_images(half))]]


def _drop_images(batch: Any, count: int) -> Any:
    def cut(leaf: Any) -> Any:
        return leaf[count:] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return map_batch(cut, batch)


def take_sample(data: Sequence[Any]) -> list[Any]:
    """Take batches from all over the data until they are `MOST_IMAGES` images; the last one is cut, if it can be."""
    images = sum(map(count_images, data))
    wanted = min(len(data), math.ceil(MOST_IMAGES * len(data) / images))
    sample = []
    missing = MOST_IMAGES
    for number in range(wanted):
        # Test images often come class after class, so that the first ones would be of few classes.
        batch = data[number * len(data) // wanted]
        sample.append(take_images(batch, missing))
        missing -= count_images(batch)
        if missing <= 0:
            break
    return sample
