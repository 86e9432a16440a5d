"""The image of a list of batches that is scaled most unlike the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bnlab.batches import list_tensors

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
