"""Which moments a call has averaged, told from a layer's running buffers before and after it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Look(NamedTuple):
    """What a layer had when a call of it began, in a thread.

    Attributes:
        values: [2, C], a copy of its running mean and variance.
        momentum: its own.
        step: that of the call.
        thread: the caller's.
    """

    values: Tensor
    momentum: float | None
    step: int
    thread: int


@torch.no_grad()
def find_averaged_moments(
    x: object, before: Tensor, after: Tensor, momenta: Iterable[float]
) -> tuple[Tensor, int] | None:
    """Mean and variance of `x` if running buffers `before` and `after` differ by averaging them; None otherwise.

    Args:
        x: a layer's input, [N, C, ...] if it is as usual.
        before, after: [2, C], running mean and variance.
        momenta: the weights that the batch may have been given.

    Returns:
        [2, C] of the buffers' type, and the variance's ddof: 1, or 0 where that is what has been averaged.
    """
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != before.shape[1] or not x.is_floating_point():
        return None
    wide = x if x.dtype == torch.float64 else x.float()
    count = x.numel() // x.shape[1]
    var, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    for ddof in (1, 0):
        moments = torch.stack((mean, var * (count / max(count - ddof, 1))))
        if any(_are_averaged(moments, before, after, momentum) for momentum in momenta):
            return moments.to(before), ddof
    return None


def _are_averaged(moments: Tensor, before: Tensor, after: Tensor, momentum: float) -> bool:
    """Whether after = (1 − momentum)·before + momentum·moments, to the rounding of buffers and of sums in float32."""
    expected = before + momentum * (moments - before)
    (mean, var), eps = moments.abs(), torch.finfo(torch.float32).eps
    deviation = var.sqrt()
    # A sum's rounding, of values as large as the mean; half of a batch differs by more.
    sums = torch.stack((100 * eps * (mean + deviation), 1000 * eps * var + 100 * eps * mean * deviation))
    rounding = 8 * torch.finfo(before.dtype).eps * (before.abs() + moments.abs())
    close = (after - expected).abs() <= rounding + abs(momentum) * sums
    return bool((close | ~(after.isfinite() | expected.isfinite())).all())
