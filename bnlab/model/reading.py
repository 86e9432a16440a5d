"""Reading an activation once: the moments of its groups of values, and how all groups become one.

On the CPU the values are read once, in their own precision and in the groups that are fastest in their memory layout,
and a second time only where their mean is far from 0. On an accelerator the moments stay there (`read_on_device`), so
that nobody waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

# Rows of up to this many "channels" (several pixels side by side) keep torch's batch-norm statistics routine in
# cache, and it sums in float32, so no more than this many rows at once. Measured faster than two passes.
_WIDTH = 1024
_HEIGHT = 512
_LONG = 4096  # pixels of an image in one float32 sum


Groups = tuple[int, Tensor, Tensor]
"""Groups of so many values each: mean and variance (ddof 0) of each, R·C values, channels innermost."""


@dataclass(frozen=True, eq=False)
class Pooled:
    """Values per channel, their mean and variance (ddof 0), float64 [C], on the CPU or where they were read."""

    count: int
    mean: Tensor
    var: Tensor


class Partial(NamedTuple):
    """Groups of values as they come out of one read of an activation.

    Attributes:
        channels: C.
        blocks: groups of one size each.
        how: "sums" of float32 values and of their squares; "moments" by torch's routine, which adds float32 values up
            one after the other; "exact" otherwise, as of values from which a shift near their mean was taken off.
    """

    channels: int
    blocks: Sequence[Groups]
    how: str

    @staticmethod
    def of(pooled: Pooled) -> Partial:
        """One group."""
        return Partial(len(pooled.mean), [(pooled.count, pooled.mean, pooled.var)], "exact")

    def select_channels(self, channels: Tensor) -> Partial:
        """Select some channels; the values of the groups are exact as they are."""
        blocks = []
        for size, mean, var in _join_groups([self]):
            blocks.append((size, mean[:, channels].flatten(), var[:, channels].flatten()))
        return Partial(len(channels), blocks, "exact")


def read(x: Tensor, shift: Tensor | None = None, channels: Tensor | None = None) -> Partial:
    """Read `x` [N, C, ...] once; with `shift`, read `channels` of `x − shift`, which is exact near the mean.

    The groups are what is fastest in this memory layout.
    """
    if x.device.type == "mps":  # which has no float64
        x = x.cpu()
    wide = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    if shift is not None:
        return _read_shifted(wide, shift, channels)
    is_innermost = wide.movedim(1, -1).is_contiguous()  # the channels, in memory
    if wide.device.type == "cpu" and is_innermost:
        return Partial(x.shape[1], _read_pixels(wide), "moments")

    images = wide.reshape(*wide.shape[:2], -1)
    size = images.shape[2]
    exact = torch.float64 if size > _LONG else None  # a float32 sum of squares loses more, the longer the rows are
    total = images.sum(dim=2, dtype=exact).flatten().double()
    norm = torch.linalg.vector_norm(images, dim=2, dtype=exact).flatten().double()
    mean = total / size
    var = norm.square().div_(size).sub_(mean.square()).clamp_(min=0)
    return Partial(x.shape[1], [(size, mean, var)], "sums")


def _read_shifted(wide: Tensor, shift: Tensor, channels: Tensor | None) -> Partial:
    """Read `wide − shift`; if a shift is NaN, in float64, with 0 in the place of NaN."""
    if not shift.isfinite().all():
        shift = shift.nan_to_num(0.0)
        wide = wide.double()
    known = shift.to(wide.device, wide.dtype)
    chosen = wide if channels is None else wide.index_select(1, channels.to(wide.device))
    near = read(chosen - known.view(-1, *[1] * (wide.dim() - 2)))
    blocks = []
    for size, mean, var in near.blocks:
        blocks.append((size, (mean.view(-1, near.channels) + known.double()).flatten(), var))
    return Partial(near.channels, blocks, "exact")


def _read_pixels(x: Tensor) -> list[Groups]:
    """Pixels side by side make up to `_HEIGHT` rows, or more; the pixels that are left over, a block of their own."""
    channels = x.shape[1]
    pixels = x.numel() // channels
    side = max(1, min(_WIDTH // channels, math.ceil(pixels / _HEIGHT)))
    rows, rest = divmod(pixels, side)
    shapes = [(min(_HEIGHT, rows - row), side * channels) for row in range(0, rows, _HEIGHT)]
    if rest:
        shapes.append((rest, channels))

    blocks = []
    offset = x.storage_offset()
    for height, width in shapes:
        # Shape [1, width, rows, 1] with the width innermost is channels_last whatever the sizes are.
        image = x.as_strided((1, width, height, 1), (height * width, 1, width, width), offset)
        mean, var = torch.batch_norm_update_stats(image, None, None, 0.0)
        blocks.append((height, mean, var))
        offset += height * width
    return blocks


def _bound_mean(parts: Sequence[Partial]) -> float:
    """Return how many standard deviations a mean may be away from 0, so that plain reads are exact enough.

    Exact enough is an error below 2e-6 of σ in the mean, and of the variance in the variance. With u = 2⁻²⁴, the
    rounding of float32:

    - "sums": a sum of squares is off by 1e-7 of E[x²] = σ²(1 + (μ/σ)²). The bound is 2.
    - "moments": torch's routine adds up to n = 512 values one after the other, and rounds the sum each time. The
      root mean square of the mean's error is sqrt(n)·u/3 of |μ|, the largest error four times that. Over g groups the
      errors average out, so that the bound grows with sqrt(g), up to 16.
    - "exact": there is no bound.
    """
    how = {part.how for part in parts}
    if how == {"exact"}:
        return math.inf
    if "sums" in how:
        return 2.0
    groups = sum(block[1].numel() for part in parts for block in part.blocks) / parts[0].channels
    return min(16.0, math.sqrt(groups))


def _join_groups(parts: Sequence[Partial]) -> list[Groups]:
    """Groups of one size together, so that there are few operations on small tensors: [R, C], float64 on the CPU."""
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for part in parts:
        for size, mean, var in part.blocks:
            means, variances = kinds.setdefault((size, mean.dtype, mean.device), ([], []))
            means.append(mean)
            variances.append(var)

    joined = []
    for (size, *_), (means, variances) in kinds.items():
        values = torch.cat([*means, *variances]).view(2, -1, parts[0].channels)
        mean, var = values.cpu().double()
        joined.append((size, mean, var))
    return joined


def _merge(groups: Sequence[tuple[int, Tensor, Tensor]]) -> Pooled:
    """Merge groups of `count` values each, with means and variances float64 [R, C]; the tensors are written into.

    The variance is that within groups and that of their means.
    """
    total = sum(count * len(means) for count, means, _ in groups)

    # About a group's mean first: the weighted sum of small differences, not the difference of large sums.
    origin = groups[0][1][0].clone()
    mean = torch.zeros_like(origin)
    for count, means, _ in groups:
        mean += means.sub_(origin).sum(0) * (count / total)

    var = torch.zeros_like(origin)
    for count, means, variances in groups:
        between = means.sub_(mean).square_()
        var += variances.add_(between).sum(0) * (count / total)
    return Pooled(total, origin.add_(mean), var)


def read_on_device(x: Tensor) -> Pooled:
    """Read `x` [N, C, ...] without waiting for its device; the result stays there, in float64.

    The first image's mean is taken off, so that float32 keeps its digits however far from 0 the values are.
    """
    x = x.detach()
    dims = [dim for dim in range(x.dim()) if dim != 1]
    first = x[:1] if x.dtype == torch.float64 else x[:1].float()
    shift = first.mean(dims, keepdim=True)

    var, mean_off_shift = torch.var_mean(x - shift, dims, correction=0)
    mean = mean_off_shift.double() + shift.flatten().double()
    count = x.numel() // x.shape[1]
    return Pooled(count, mean, var.double())


def pool_on_device(parts: Sequence[Pooled]) -> Pooled:
    """Merge reads of one layer where they are."""
    groups = []
    for size in dict.fromkeys(part.count for part in parts):
        alike = [part for part in parts if part.count == size]
        means = torch.stack([part.mean for part in alike])
        variances = torch.stack([part.var for part in alike])
        groups.append((size, means, variances))
    return _merge(groups)


class Reader:
    """Reads the moments of what layers are given, on the CPU; channels far from 0 are read a second time.

    Attributes:
        is_immediate: whether moments can be looked at without waiting for a device.
    """

    is_immediate: ClassVar[bool] = True

    def read(self, x: Tensor) -> Any:
        """Read `x` [N, C, ...], which is kept to be read again where this is coarse; return what `pool` takes."""
        return read(x)

    def measure(self, x: Tensor) -> Pooled:
        """Compute the moments of `x` [N, C, ...]."""
        return self.pool([read(x)], [x])

    def pool(self, parts: Sequence[Any], kept: Sequence[Tensor]) -> Pooled:
        """Merge what was read of one layer; channels for which a plain read was too coarse are read again.

        Args:
            parts: what `read` has returned, then what `measure` has.
            kept: the values that were given to `read`, in the same order.
        """
        partials = [Partial.of(part) if isinstance(part, Pooled) else part for part in parts]
        pooled = _merge(_join_groups(partials))
        has_overflowed = ~(pooled.mean + pooled.var).isfinite()  # or values are not finite: the second read shows which
        is_far_from_zero = pooled.mean.square() > _bound_mean(partials) ** 2 * pooled.var
        is_coarse = is_far_from_zero | has_overflowed
        if not is_coarse.any():
            return pooled

        # Far from 0 a sum of squares, and any float32 mean, loses digits. Where sums have overflown, no mean is known.
        channels = is_coarse.nonzero().flatten()
        shift = pooled.mean.where(~has_overflowed, torch.nan)[channels]
        again = [read(x, shift, channels) for x in kept]
        again += [part.select_channels(channels) for part in partials[len(kept) :]]
        exact = _merge(_join_groups(again))
        mean = pooled.mean.index_copy(0, channels, exact.mean)
        var = pooled.var.index_copy(0, channels, exact.var)
        return Pooled(pooled.count, mean, var)


class DeviceReader(Reader):
    """Reads on an accelerator and leaves the moments there; one read is exact."""

    is_immediate = False

    def read(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def measure(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def pool(self, parts: Sequence[Pooled], kept: Sequence[Tensor]) -> Pooled:
        return pool_on_device(parts)


def choose_reader(device: torch.device, is_alone: bool) -> Reader:
    """Choose the reader for a device; `is_alone`: no other process waits for the moments of each layer."""
    has_float64 = device.type not in ("cpu", "mps")
    return DeviceReader() if has_float64 and is_alone else Reader()
