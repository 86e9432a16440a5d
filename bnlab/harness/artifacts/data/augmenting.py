"""Random shifts and flips of training images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Each image [C, H, W] of a batch shifted by up to `shift` pixels each way and mirrored half the time.

    What comes in from outside is 0: the mean of standardized pixels. Draws nothing if both are off.
    """
    if not shift and not flip:
        return images
    n, _, height, width = images.shape
    at = generator.device
    down, right = torch.randint(2 * shift + 1, (2, n, 1), generator=generator, device=at)
    rows = down + torch.arange(height, device=at)
    columns = right + torch.arange(width, device=at)
    if flip:
        mirrored = torch.randint(2, (n, 1), generator=generator, device=at).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(n, device=images.device)
    # The slice between index tensors moves the channels to the end: the result is channels_last.
    padded = F.pad(images, [shift] * 4)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
