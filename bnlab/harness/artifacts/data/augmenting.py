"""Random shifts and flips of training images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Shift each image [C, H, W] of a batch by up to `shift` pixels each way, and mirror it half the time.

    What comes in from outside is 0: the mean of standardized pixels. Draws nothing if both are off.
    """
    if not shift and not flip:
        return images

    n, _, height, width = images.shape
    device = generator.device
    down, right = torch.randint(2 * shift + 1, (2, n, 1), generator=generator, device=device)
    rows = down + torch.arange(height, device=device)
    columns = right + torch.arange(width, device=device)
    if flip:
        is_mirrored = torch.randint(2, (n, 1), generator=generator, device=device).bool()
        mirrored = columns.flip(1)
        columns = torch.where(is_mirrored, mirrored, columns)

    # Three indices that broadcast to [N, H, W].
    which = torch.arange(n, device=images.device).view(n, 1, 1)
    rows = _send(rows, images.device).view(n, height, 1)
    columns = _send(columns, images.device).view(n, 1, width)

    padded = F.pad(images, [shift] * 4)
    # The slice between index tensors moves the channels to the end: the result is channels_last.
    augmented = padded[which, :, rows, columns]
    return augmented.permute(0, 3, 1, 2)


def _send(numbers: Tensor, device: torch.device) -> Tensor:
    """Send numbers to a device without waiting for it."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
