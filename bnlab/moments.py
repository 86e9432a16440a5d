"""Count, mean and variance of a layer's input, and how two of them become one.

Everything that is kept is float64 on the CPU; the activations themselves are read once, in their own precision, and
a second time only where their mean is far from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of up to this many "channels" (several pixels side by side) keep torch's batch-norm statistics routine in
# cache, and it sums in float32, so no more than this many rows at once. Measured faster than two passes.
_WIDTH, _HEIGHT = 1024, 512
_WITH_ROUTINE = ("cpu", "cuda")  # devices that have it
_LONG = 4096  # pixels of an image in one float32 sum


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
            TypeError: `x` is no tensor.
            ValueError: it has fewer than two axes or no values, or they are not of a floating-point type.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"Moments.of: found a {type(x).__name__}; pass a floating-point tensor [N, C, ...]")
        if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point():
            raise ValueError(
                f"Moments.of: found a {x.dtype} tensor of shape {tuple(x.shape)}; "
                "pass a non-empty floating-point tensor [N, C, ...]"
            )
        return pooled_moments([read(x)], lambda shift, channels: [read(x, shift, channels)])

    @staticmethod
    def empty(channels: int) -> Moments:
        """Moments before any data: count 0, mean and var NaN [C]. Neutral in `merge`."""
        nan = torch.full((channels,), torch.nan, dtype=torch.float64, device="cpu")
        return Moments(0, nan, nan)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of values together (Chan, Golub & LeVeque 1979), in float64.

        Raises:
            TypeError: `other` is no `Moments`.
            ValueError: the channels differ, or one side is a running average (its count is NaN).
        """
        if not isinstance(other, Moments):
            raise TypeError(f"merge: found a {type(other).__name__}; pass Moments")
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


def compare_moments(reference: Moments, other: Moments, scale: Tensor | None = None) -> tuple[float, float]:
    """The largest differences of a channel's mean, in σ, and of its variance, relative; 0 where both are dead.

    Args:
        scale: [C], the variance that both are relative to; default the reference's.
    """
    var = reference.var if scale is None else scale
    mean_off = (other.mean - reference.mean).abs() / var.sqrt()
    var_off = (other.var - reference.var).abs() / var
    return float(mean_off.nan_to_num(0.0, torch.inf).max()), float(var_off.nan_to_num(0.0, torch.inf).max())


def pooled_moments(parts: Sequence[Partial], again: Callable[[Tensor, Tensor], Sequence[Partial]]) -> Moments:
    """Moments of all parts together.

    `again(shift, channels)` reads some channels about a known mean, where the plain read was too coarse: far from 0 a
    sum of squares, and any float32 mean, loses digits. A shift of NaN: about 0 in float64, which does not overflow.
    """
    moments = pool(parts)
    overflown = ~(moments.mean + moments.var).isfinite()  # or not finite at all, as will be seen
    if overflown.any():
        moments.mean[overflown] = torch.nan
    coarse = (moments.mean.square() > _bound_mean(parts) ** 2 * moments.var) | overflown
    if not coarse.any():
        return moments
    channels = coarse.nonzero().flatten()
    exact = pool(again(moments.mean[channels], channels))
    return Moments(
        moments.count,
        moments.mean.index_copy(0, channels, exact.mean),
        moments.var.index_copy(0, channels, exact.var),
    )


class GroupMoments(NamedTuple):
    """R groups of `size` values: mean and variance (ddof 0) of each, R·C values, channels innermost."""

    size: int
    mean: Tensor
    var: Tensor


class GroupSums(NamedTuple):
    """R groups of `size` values: Σx and the root of Σx² of each, R·C values, channels innermost."""

    size: int
    total: Tensor
    norm: Tensor


class Partial(NamedTuple):
    """Groups of values as they come out of one read of an activation, not yet in float64.

    Attributes:
        channels: C.
        blocks: groups of one size each.
        shift: [C], what has been taken off the values.
    """

    channels: int
    blocks: Sequence[GroupMoments | GroupSums]
    shift: Tensor | None = None

    @staticmethod
    def of(moments: Moments) -> Partial:
        """One group."""
        return Partial(len(moments.mean), [GroupMoments(int(moments.count), moments.mean, moments.var)])

    def of_channels(self, channels: Tensor) -> Partial:
        """What it holds of some channels, exact as it is."""
        own = [(count, mean[:, channels].flatten(), var[:, channels].flatten()) for count, mean, var in self.groups()]
        return Partial(len(channels), [GroupMoments(*block) for block in own])

    @property
    def nbytes(self) -> int:
        return sum(2 * first.nbytes for _, first, _ in self.blocks)

    def groups(self) -> list[tuple[int, Tensor, Tensor]]:
        """Values in each group, mean and variance [R, C] of R groups of that size, float64 on the CPU."""
        return _join_groups([self])


def _bound_mean(parts: Sequence[Partial]) -> float:
    """Up to how many standard deviations from 0 the mean may lie, for errors below 2e-6 of σ and of the variance.

    A float32 sum of squares is off by 1e-7 of E[x²] = σ²(1 + (μ/σ)²). The routine adds up to n = 512 values one after
    the other and rounds by u = 2⁻²⁴ of what there is each time: by sqrt(n)·u/3 of |μ|, root mean square, and four times
    as much at most; groups average that out. What has been shifted is near 0.
    """
    if all(part.shift is not None for part in parts):
        return math.inf
    if any(isinstance(block, GroupSums) for part in parts for block in part.blocks):
        return 2.0
    return min(16.0, math.sqrt(sum(block[1].numel() for part in parts for block in part.blocks) / parts[0].channels))


def _join_groups(parts: Sequence[Partial]) -> list[tuple[int, Tensor, Tensor]]:
    """Of all parts; groups of one size and kind together, so that there are few operations on small tensors."""
    kinds: dict[tuple[int, type, int, torch.device], tuple[Partial, list[Tensor], list[Tensor]]] = {}
    for part in parts:
        for block in part.blocks:
            count, first, second = block
            kind = kinds.setdefault((count, type(block), id(part.shift), first.device), (part, [], []))
            kind[1].append(first)
            kind[2].append(second)
    found = []
    for (count, kind_of_block, _, _), (part, firsts, seconds) in kinds.items():
        mean, var = torch.cat([*firsts, *seconds]).view(2, -1, part.channels).cpu().double()  # no float64 on MPS
        if kind_of_block is GroupSums:
            mean /= count
            var.square_().div_(count).sub_(mean.square()).clamp_(min=0)
        if part.shift is not None:
            mean += part.shift.cpu().double()
        found.append((count, mean, var))
    return found


def pool(parts: Sequence[Partial]) -> Moments:
    """All groups of all parts merged at once: within-group variance plus the variance of the group means."""
    found = _join_groups(parts)
    total = sum(count * len(means) for count, means, _ in found)
    # About a group's mean first: the weighted sum of small differences, not the difference of large sums.
    origin = found[0][1][0].clone()
    mean = reduce(torch.add, (means.sub_(origin).sum(0) * (count / total) for count, means, _ in found))
    spread = (variances.add_(means.sub_(mean).square_()).sum(0) * (count / total) for count, means, variances in found)
    return Moments(total, origin.add_(mean), reduce(torch.add, spread))


def read(x: Tensor, shift: Tensor | None = None, channels: Tensor | None = None, *, by_image: bool = False) -> Partial:
    """One read of `x` [N, C, ...]; with `shift`, of `channels` of `x − shift` (which is exact near the mean).

    The groups are what is fastest in this memory layout, or the images (rows in their order).
    """
    wide = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    if shift is not None:
        if not shift.isfinite().all():
            shift, wide = shift.nan_to_num(0.0), (wide.cpu() if wide.device.type == "mps" else wide).double()
        known = shift.to(wide.device, wide.dtype)
        off = known.view(-1, *[1] * (x.dim() - 2))
        near = wide - off if channels is None else wide.index_select(1, channels.to(wide.device)).sub_(off)
        return read(near, by_image=by_image)._replace(shift=known)
    if not by_image and wide.device.type in _WITH_ROUTINE and _has_channels_innermost(wide):
        return Partial(x.shape[1], _read_pixels(wide))
    images = wide.reshape(*wide.shape[:2], -1)
    # Long rows in float64: what a float32 sum of squares loses grows with their length.
    exact = None
    if images.shape[2] > _LONG:
        exact, images = torch.float64, images.cpu() if images.device.type == "mps" else images
    sums = images.sum(dim=2, dtype=exact), torch.linalg.vector_norm(images, dim=2, dtype=exact)
    return Partial(x.shape[1], [GroupSums(images.shape[2], sums[0].flatten(), sums[1].flatten())])


def _has_channels_innermost(x: Tensor) -> bool:
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def _read_pixels(x: Tensor) -> list[GroupMoments]:
    """Pixels side by side make up to `_HEIGHT` rows, or more; the pixels that are left over, a block of their own."""
    channels = x.shape[1]
    pixels = x.numel() // channels
    side = max(1, min(_WIDTH // channels, math.ceil(pixels / _HEIGHT)))
    rows, rest = divmod(pixels, side)
    shapes = [(min(_HEIGHT, rows - row), side * channels) for row in range(0, rows, _HEIGHT)]
    found, offset = [], x.storage_offset()
    for height, width in [*shapes, (rest, channels)] if rest else shapes:
        # Shape [1, width, rows, 1] with the width innermost is channels_last whatever the sizes are.
        image = x.as_strided((1, width, height, 1), (height * width, 1, width, width), offset)
        found.append(GroupMoments(height, *torch.batch_norm_update_stats(image, None, None, 0.0)))
        offset += height * width
    return found
