"""Handwritten digits: a small data set that needs no download. `digits.md` says where it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_FILE = Path(__file__).with_name("digits.npz")


def load_digits() -> tuple[Tensor, Tensor]:
    """Load 1,797 handwritten digits.

    >>> images, labels = load_digits()
    >>> images.shape, images.max()
    (torch.Size([1797, 1, 8, 8]), tensor(16, dtype=torch.uint8))
    >>> labels[:12]
    tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])

    Returns:
        Images [1797, 1, 8, 8] of whole numbers (uint8) from 0 to 16, and labels [1797] from 0 to 9.
    """
    with np.load(_FILE) as stored:
        images = torch.from_numpy(stored["images"])
        labels = torch.from_numpy(stored["labels"])
    return images.unsqueeze(1), labels.long()
