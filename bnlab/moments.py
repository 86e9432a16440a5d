"""Count, mean and variance of a layer's input, and how two of them become one.

Everything that is kept is float64 on the CPU; the activations themselves are read once, in their own precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of about this many "channels" (several pixels side by side) keep torch's batch-norm statistics routine in
# cache, and it sums in float32, so no more than this many rows at once. Measured faster than two passes.
_WIDTH, _HEIGHT = 2048, 512

# A float32 sum is off by some 1e-7 of |mean|. Past this |mean|/std that may be more than 4e-6 std: shift and redo.
_SHIFT_RATIO = 16.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of one layer's input over `count` values in each channel.

    Args:
        count: values in each channel (N·H·W), not images. NaN for a running average, which has no count.
        mean: float64 [C], on the CPU. NaN before any data.
        var: float64 [C], divisor `count` (ddof 0). NaN before any data. Where the moments were read from
            buffers or replayed it is what the buffer holds, as is.

    >>> a = Moments.of(torch.tensor([[1.0], [3.0]]))
    >>> a.count, a.mean.item(), a.var.item()
    (2, 2.0, 1.0)
    >>> b = a.merge(Moments.of(torch.tensor([[8.0]])))
    >>> b.count, b.mean.item(), round(b.var.item(), 4)
    (3, 4.0, 8.6667)
    """

    count: float
    mean: Tensor
    var: Tensor

    @staticmethod
    def of(x: Tensor) -> Moments:
        """Moments of `x` [N, C, ...] over all axes but the second.

        Raises:
            ValueError: `x` has fewer than two axes, no values, or is not of a floating-point type.
        """
        if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point():
            raise ValueError(
                f"Moments.of: found a {x.dtype} tensor of shape {tuple(x.shape)}; "
                "pass a non-empty floating-point tensor [N, C, ...]"
            )
        return pooled_moments([read(x)], lambda shift: [read(x, shift)])

    @staticmethod
    def empty(channels: int) -> Moments:
        """Moments before any data: count 0, mean and var NaN [C]. Neutral in `merge`."""
        nan = torch.full((channels,), torch.nan, dtype=torch.float64)
        return Moments(0, nan, nan)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of values together (Chan, Golub & LeVeque 1979), in float64.

        Raises:
            ValueError: the channels differ, or one side is a running average (its count is NaN).
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"merge: {self.mean.numel()} channels against {other.mean.numel()}; merge one layer's moments"
            )
        if self.count != self.count or other.count != other.count:
            raise ValueError("merge: a running average has no count; merge measured moments only")
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        n = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / n)
        m2 = self.var * self.count + other.var * other.count + delta.square() * (self.count * other.count / n)
        return Moments(n, mean, m2 / n)


def pooled_moments(parts: Sequence[Partial], again: Callable[[Tensor], Sequence[Partial]]) -> Moments:
    """Moments of all parts together; `again(shift)` reads them about a known mean, where a plain read is too coarse."""
    moments = pool(parts)
    if (moments.mean.abs() > _SHIFT_RATIO * moments.var.sqrt()).any():
        moments = pool(again(moments.mean))
    return moments


@dataclass(frozen=True, eq=False)
class Partial:
    """Moments of R groups of values, as they come out of one read of an activation. Float64, on the CPU.

    count: [R, 1]. mean, var: [R, C], `var` about each group's own mean with divisor `count`.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    @staticmethod
    def of(moments: Moments) -> Partial:
        """One group."""
        count = torch.tensor([[moments.count]], dtype=torch.float64)
        return Partial(count, moments.mean[None], moments.var[None])


def read(x: Tensor, shift: Tensor | None = None, *, by_image: bool = False) -> Partial:
    """One read of `x` [N, C, ...]; with `shift` [C], of `x − shift` (which is exact near the mean).

    The groups are what is fastest in this memory layout, or the images (rows in their order).
    """
    wide = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    if shift is not None:
        known = shift.to(wide.device, wide.dtype)
        found = read(wide - known.view(-1, *[1] * (x.dim() - 2)))
        return Partial(found.count, found.mean + known.double().cpu(), found.var)
    innermost = wide.movedim(1, -1)
    if innermost.is_contiguous() and not by_image:
        return _partial_by_pixel(innermost.flatten(0, -2))
    return _partial_by_image(wide.reshape(*wide.shape[:2], -1))


def _partial_by_pixel(pixels: Tensor) -> Partial:
    """`pixels` [n, C], contiguous: several of them side by side make a row, the rest of them a block of their own."""
    n, channels = pixels.shape
    side = max(1, _WIDTH // channels)
    whole = n // side * side
    blocks = [*pixels[:whole].view(-1, side * channels).split(_HEIGHT), pixels[whole:]]
    counts, found = [], []
    for block in blocks:
        rows, width = block.shape
        if rows:
            # Shape [1, width, rows, 1] with the width innermost is channels_last whatever the sizes are.
            image = block.as_strided((1, width, rows, 1), (rows * width, 1, width, width))
            found.append(torch.stack(torch.batch_norm_update_stats(image, None, None, 0.0)).view(2, -1, channels))
            counts += [rows] * (width // channels)
    moments = torch.cat(found, dim=1).double().cpu()
    return Partial(torch.tensor(counts, dtype=torch.float64)[:, None], moments[0], moments[1])


def _partial_by_image(x: Tensor) -> Partial:
    """`x` [N, C, S]: sum and norm of `x − k` for each image and channel, k near its mean (one shifted read)."""
    images, _, spatial = x.shape
    k = x[:, :, :: max(1, spatial // 8)].mean(dim=2)
    shifted = x - k[:, :, None]
    offset = shifted.sum(dim=2).double() / spatial
    square = torch.linalg.vector_norm(shifted, dim=2).double().square() / spatial
    mean, var = (k.double() + offset).cpu(), (square - offset.square()).clamp_(min=0).cpu()
    return Partial(torch.full((images, 1), spatial, dtype=torch.float64), mean, var)


def pool(parts: Sequence[Partial]) -> Moments:
    """All groups of all parts merged at once: within-group variance plus the variance of the group means."""
    counts, means, variances = (torch.cat([getattr(p, key) for p in parts]) for key in ("count", "mean", "var"))
    total = counts.sum()
    weight = counts / total
    # About a group's mean first: the weighted sum of small differences, not the difference of large sums.
    origin = means[0]
    mean = origin + (weight * (means - origin)).sum(0)
    var = (weight * (variances + (means - mean).square())).sum(0)
    return Moments(int(total), mean, var)
