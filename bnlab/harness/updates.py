"""The updates of a training: how many an epoch has, the order of its images, its last batch, and the learning rate."""

from __future__ import annotations

import math
import re

from bnlab.harness.errors import UserError, suggest

SCHEDULES = {
    "onecycle": "The learning rate rises for a fifth of training and falls to 0 at the end.",
    "cosine": "The learning rate rises for a twentieth of training and falls to 0 at the end, along a cosine.",
    "step": "The learning rate falls to a tenth after half of training, and again after three quarters.",
    "constant": "The learning rate is constant.",
}
"""Each in a sentence."""
ORDERS = ("shuffled", "sorted", "blocks:16")
"""Orders of the images in an epoch; blocks may also be of another number of images."""
ADVICE = "and its update is made at the full learning rate, which can harm the weights; last_batch=drop leaves it out"
"""What to know of a small last batch."""


def check_order(order: str) -> None:
    """Raise UserError unless there is such an order."""
    if order not in ORDERS and not re.fullmatch(r"blocks:[1-9]\d*", order):
        raise UserError(f"order={order}: {suggest(order, ORDERS)}")


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """The share of the peak learning rate for update `step + 1` of `steps`."""
    done = step / steps
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        if done < 0.5:
            return 1.0
        return 0.1 if done < 0.75 else 0.1**2
    if schedule == "cosine":
        return _follow_cosine(step, steps)
    rise = 0.2
    if done < rise:
        return 0.05 + 0.95 * done / rise
    return (1 - done) / (1 - rise)


def _follow_cosine(step: int, steps: int) -> float:
    """Rise in equal steps over the first 5% of the updates, then fall along half a period of a cosine."""
    warm_up = 0.05 * steps
    # Not step / warm_up, by which the first update would have a rate of 0 and do nothing.
    if step + 1 <= warm_up:
        return (step + 1) / warm_up
    # Where the warm-up is no whole number of updates, the first one after it begins before its end.
    fallen = max(0.0, step - warm_up) / (steps - warm_up)
    return 0.5 * (1 + math.cos(math.pi * fallen))


def count_training(images: int) -> int:
    """Count the training images: nine in ten of the training and validation images together."""
    return images - images // 10


def steps_per_epoch(images: int, batch_size: int, last_batch: str = "keep") -> int:
    """Count the batches in an epoch; a last one of a single image, which has no variance, is always dropped."""
    full, rest = divmod(images, batch_size)
    is_kept = last_batch == "keep" and rest > 1
    return full + 1 if is_kept else full


def count_last(images: int, batch_size: int, steps: int) -> int | None:
    """Count the images in a small last batch, at most half of a full one; None where none is trained on in `steps`."""
    full, left = divmod(images, batch_size)
    is_small = 1 < left <= batch_size / 2
    is_trained_on = 0 < full < steps  # full batches come first
    return left if is_small and is_trained_on else None
