"""Reading an activation once: the moments of its groups of values, and how all groups become one.

The values are read once, in their own precision, and a second time only where their mean is far from 0: once all
batches of a layer have been read, a look at the pooled moments says which channels those are. On an accelerator that
look is the one time in a layer that the program waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Rows of up to this many "channels" (several pixels side by side) keep torch's batch-norm statistics routine in
# cache, and it sums in float32, so no more than this many rows at once. Measured faster than two passes.
_WIDTH = 1024
_HEIGHT = 512
_LONG = 4096  # pixels of an image in one float32 sum
_REFILLED = 0.01  # σ between the means of two reads, beyond which they are of other values


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
            one after the other; "updates" of a running float32 mean by one value after the other, in many threads;
            "exact" otherwise, as of values from which a shift near their mean was taken off.
    """

    channels: int
    blocks: Sequence[Groups]
    how: str

    def select_channels(self, channels: Tensor) -> Partial:
        """Select some channels; the values of the groups are exact as they are."""
        blocks = []
        for size, mean, var in _join_groups([self]):
            blocks.append((size, mean[:, channels].flatten(), var[:, channels].flatten()))
        return Partial(len(channels), blocks, "exact")


def _widen(x: Tensor) -> Tensor:
    """Convert values to at least float32, on a device that has float64."""
    if x.device.type == "mps":  # which has none
        x = x.cpu()
    return x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()


def _read_pixels(x: Tensor) -> list[Groups]:
    """Pixels side by side make up to `_HEIGHT` rows, or more; the pixels that are left over, a block of their own."""
    channels = x.shape[1]
    pixels = x.numel() // channels
    # A row has as many pixels as it takes to need no more than `_HEIGHT` rows, if the width allows that.
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
        # The momentum is not used, because there are no running buffers to update. The variance has ddof 0.
        mean, var = torch.batch_norm_update_stats(image, None, None, 0.0)
        blocks.append((height, mean, var))
        offset += height * width
    return blocks


def _bound_mean(parts: Sequence[Partial]) -> float:
    """Return how many standard deviations a mean may be away from 0, so that plain reads are exact enough.

    Exact enough is an error below 2.5e-6 of σ in the mean, and of the variance in the variance. With u = 2⁻²⁴, the
    rounding of float32:

    - "sums": a sum of squares is off by 1e-7 of E[x²] = σ²(1 + (μ/σ)²). The bound is 2.
    - "moments": torch's routine adds up to n = 512 values one after the other, and rounds the sum each time. The
      root mean square of the mean's error is sqrt(n)·u/3 of |μ|, the largest error four times that. Over g groups the
      errors average out, so that the bound grows with sqrt(g), up to 16.
    - "updates": step i of n rounds the mean by at most u·|μ|, of which the later updates leave i/n. So the mean of a
      thread is off by sqrt(n)·u/3 of |μ|, root mean square, as a sum is. Its n values are a few thousand; but a channel
      has hundreds of threads, whose errors average out to less than u, and they are merged in pairs, ten times or so,
      each of which rounds again. The largest error over channels was measured as 5u of |μ|, so that the bound is 8.
    - "exact": there is no bound.
    """
    how = [part.how for part in parts if part.how != "exact"]
    if not how:
        return math.inf
    if "sums" in how:
        return 2.0
    if "updates" in how:
        return 8.0
    means = sum(mean.numel() for part in parts for _, mean, _ in part.blocks)
    groups = means / parts[0].channels
    return min(16.0, math.sqrt(groups))


def _join_groups(parts: Sequence[Partial]) -> list[Groups]:
    """Join the groups of one size, so that there are few operations on small tensors: [R, C] each, in float64."""
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for part in parts:
        for size, mean, var in part.blocks:
            means, variances = kinds.setdefault((size, mean.dtype), ([], []))
            means.append(mean)
            variances.append(var)

    joined = []
    for (size, _), (means, variances) in kinds.items():
        mean, var = torch.cat([*means, *variances]).view(2, -1, parts[0].channels).double()
        joined.append((size, mean, var))
    return joined


class Refilled(Exception):
    """Values have changed between two reads: a forward has written others into the memory of those that wait."""


def _require_same_values(first: Sequence[Partial], again: Sequence[Partial], channels: Tensor) -> None:
    """Raise Refilled if a second read of values has found other means than the first, which was coarse."""
    for coarse, exact in zip(first, again, strict=False):
        before = _merge(_join_groups([coarse.select_channels(channels)]))
        now = _merge(_join_groups([exact]))
        off = (before.mean - now.mean).abs()
        # What a coarse read may be off, see `_bound_mean`, is far less than this.
        if (off > _REFILLED * (now.var.sqrt() + _REFILLED * now.mean.abs())).any():
            raise Refilled


def _merge(groups: Sequence[Groups]) -> Pooled:
    """Merge groups of one size or of several, with means and variances float64 [R, C].

    The variance is that within groups and that of their means. These are taken about one of them first: the weighted
    sum of small differences, not the difference of large sums.
    """
    first_size, first_means, first_variances = groups[0]
    origin = first_means[0]
    if len(groups) == 1 and len(first_means) == 1:
        return Pooled(first_size, origin, first_variances[0])

    # The groups of each size become one, whose mean is taken about `origin`.
    merged = []
    for size, means, variances in groups:
        offsets = means - origin
        offset = offsets.mean(0)
        # In place, because there may be a row for each image of the data.
        offsets -= offset
        squares = offsets.square_()
        var = squares.add_(variances).mean(0)
        merged.append(Pooled(size * len(means), offset, var))
    if len(merged) == 1:
        only = merged[0]
        return Pooled(only.count, origin + only.mean, only.var)

    total = sum(each.count for each in merged)
    offset = torch.stack([each.mean * (each.count / total) for each in merged]).sum(0)
    var = torch.zeros_like(offset)
    for each in merged:
        between = (each.mean - offset).square_()
        var += between.add_(each.var) * (each.count / total)
    return Pooled(total, origin + offset, var)


class Reader:
    """Reads the moments of what layers are given, on the CPU; channels far from 0 are read a second time."""

    def read(self, x: Tensor) -> Partial:
        """Read `x` [N, C, ...], which is kept to be read again where this is coarse; return what `pool` takes.

        The groups are those that are fastest in its memory layout.
        """
        wide = _widen(x)
        is_innermost = wide.movedim(1, -1).is_contiguous()  # the channels, in memory
        if wide.device.type == "cpu" and is_innermost:
            return Partial(x.shape[1], _read_pixels(wide), "moments")

        images = wide.reshape(*wide.shape[:2], -1)
        size = images.shape[2]
        dtype = torch.float64 if size > _LONG else None  # a float32 sum of squares loses more, the longer the rows are
        total = images.sum(dim=2, dtype=dtype).flatten().double()
        # `vector_norm` adds up squares without a tensor of all squares.
        norm = torch.linalg.vector_norm(images, dim=2, dtype=dtype).flatten().double()
        mean = total / size
        # Rounding may make the difference slightly negative.
        var = norm.square().div_(size).sub_(mean.square()).clamp_(min=0)
        return Partial(x.shape[1], [(size, mean, var)], "sums")

    def measure(self, x: Tensor) -> Pooled:
        """Compute the moments of `x` [N, C, ...]."""
        return self.pool([self.read(x)], [x])

    def pool(self, parts: Sequence[Partial | Pooled], kept: Sequence[Tensor]) -> Pooled:
        """Merge what was read of one layer; channels for which a plain read was too coarse are read again.

        Args:
            parts: what `read` has returned, then what `measure` has.
            kept: the values that were given to `read`, in the same order.
        """
        partials = []
        for part in parts:
            if isinstance(part, Pooled):
                # Moments that `measure` has returned need no second read.
                partials.append(Partial(len(part.mean), [(part.count, part.mean, part.var)], "exact"))
            else:
                partials.append(part)
        pooled = _merge(_join_groups(partials))
        bound = _bound_mean(partials)

        # If everything is exact already, this returns before the look at the means, for which an accelerator would have
        # to be waited for.
        if bound == math.inf:
            return pooled
        # False where sums have overflown, too, or values are not finite: the second read shows which.
        is_near_zero = pooled.mean.square() <= pooled.var * bound**2
        is_fine = is_near_zero & (pooled.var < torch.inf)
        if is_fine.all():
            return pooled

        # Far from 0 a sum of squares, and any float32 mean, loses digits. Where sums have overflown, no mean is known.
        channels = (~is_fine).nonzero().flatten()
        is_known = (pooled.mean + pooled.var).isfinite()
        shift = pooled.mean.where(is_known, torch.nan)[channels]
        # Looked at once for all values, as an accelerator has to be waited for.
        has_unknown = not bool(shift.isfinite().all())
        shift = shift.nan_to_num(0.0)

        # What was measured and not kept is exact already; only its channels are selected.
        again = [self._read_shifted(x, shift, channels, in_float64=has_unknown) for x in kept]
        if not has_unknown:
            _require_same_values(partials, again, channels)
        again += [part.select_channels(channels) for part in partials[len(kept) :]]
        exact = _merge(_join_groups(again))
        mean = pooled.mean.index_copy(0, channels, exact.mean)
        var = pooled.var.index_copy(0, channels, exact.var)
        return Pooled(pooled.count, mean, var)

    def _read_shifted(
        self, x: Tensor, shift: Tensor, channels: Tensor | None = None, in_float64: bool = False
    ) -> Partial:
        """Read `channels`, or all of them, of `x − shift`; in float64 where a shift is only a guess."""
        wide = _widen(x)
        if channels is not None:
            wide = wide.index_select(1, channels.to(wide.device))
        if in_float64:
            wide = wide.double()
        known = shift.to(wide.device, wide.dtype)
        positions = [1] * (wide.dim() - 2)
        near = self.read(wide - known.view(-1, *positions))

        # The means get the shift back, in float64; a shift does not change variances.
        blocks = []
        for size, mean, var in near.blocks:
            shifted_back = mean.view(-1, near.channels) + known.double()
            blocks.append((size, shifted_back.flatten(), var.double()))
        return Partial(near.channels, blocks, "exact")


class DeviceReader(Reader):
    """Reads on an accelerator and leaves the moments there."""

    def read(self, x: Tensor) -> Partial:
        """Read `x` [N, C, ...] as one group by one operation, which the accelerator does in parallel."""
        x = x.detach()
        count = x.numel() // x.shape[1]
        if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last):
            # It adds up float16 and bfloat16 in float32. With the channels innermost it is faster than `var_mean`.
            mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:
            dims = [dim for dim in range(x.dim()) if dim != 1]
            var, mean = torch.var_mean(_widen(x), dims, correction=0)
        return Partial(x.shape[1], [(count, mean, var)], "updates")

    def measure(self, x: Tensor) -> Pooled:
        """Compute the moments of `x` [N, C, ...] without waiting: by a second read of all channels."""
        _, mean, _ = self.read(x).blocks[0]
        count, exact_mean, exact_var = self._read_shifted(x, mean).blocks[0]
        return Pooled(count, exact_mean, exact_var)


def choose_reader(device: torch.device, is_alone: bool) -> Reader:
    """Choose the reader for a device; `is_alone`: no other process waits for the moments of each layer."""
    has_float64 = device.type not in ("cpu", "mps")
    return DeviceReader() if has_float64 and is_alone else Reader()
