"""Reading an activation: the moments of its groups of values, and how moments become one.

On the CPU the values are read once, in their own precision, and a second time only in channels whose mean is far from
0. On an accelerator they are read in float64, so that the program never waits for the device to say which these are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of up to this many "channels" (several pixels side by side) keep torch's batch-norm statistics routine in
# cache, and it sums in float32, so no more than this many rows at once. Measured faster than two passes.
_WIDTH = 1024
_HEIGHT = 512
_LONG = 4096  # pixels of an image in one float32 sum

Groups = tuple[int, Tensor, Tensor]
"""Groups of so many values each: mean and variance (ddof 0) of each, float64 [R, C]."""


@dataclass(frozen=True, eq=False)
class DeviceMoments:
    """Count, mean and variance (ddof 0) of the values in each channel, float64 [C], on the device that read them.

    `bnlab.statistics.moments.fetch` brings them to the CPU, as `Moments`.
    """

    count: int
    mean: Tensor
    var: Tensor


class _Read(NamedTuple):
    """Groups of values as they come out of one read of an activation.

    Attributes:
        groups: those of each size.
        bound: how many standard deviations a channel's mean may be away from 0, so that they are exact enough: off by
            less than 2.5e-6 of σ in the mean, and of the variance in the variance.
    """

    groups: list[Groups]
    bound: float


class Reader:
    """Reads the moments of what layers are given."""

    def measure(self, x: Tensor) -> DeviceMoments:
        """Compute the moments of `x` [N, C, ...]."""
        wide = _widen(x)
        groups, bound = _read(wide)
        pooled = _merge(groups)
        # False where sums have overflown, too, or values are not finite: the second read shows which.
        is_fine = (pooled.mean.square() <= pooled.var * bound**2) & (pooled.var < torch.inf)
        if is_fine.all():
            return pooled

        # Far from 0 a sum of squares, and any float32 mean, loses digits.
        channels = (~is_fine).nonzero().flatten()
        far = wide.index_select(1, channels)
        shift = pooled.mean[channels].to(far.dtype)
        if not (shift + pooled.var[channels]).isfinite().all():  # sums have overflown, so that no mean is known
            far = far.double()
            shift = torch.zeros_like(shift, dtype=torch.float64)
        positions = [1] * (x.dim() - 2)
        near = _merge(_read(far - shift.view(-1, *positions)).groups)
        mean = pooled.mean.index_copy(0, channels, near.mean + shift.double())
        var = pooled.var.index_copy(0, channels, near.var)
        return DeviceMoments(pooled.count, mean, var)

    def pool(self, parts: Sequence[DeviceMoments]) -> DeviceMoments:
        """Merge the moments of parts, at least of one."""
        by_count: dict[int, list[DeviceMoments]] = {}
        for part in parts:
            by_count.setdefault(part.count, []).append(part)
        groups = []
        for count, same in by_count.items():
            groups.append((count, torch.stack([each.mean for each in same]), torch.stack([each.var for each in same])))
        return _merge(groups)


class DeviceReader(Reader):
    """Reads on an accelerator, and leaves the moments there."""

    def measure(self, x: Tensor) -> DeviceMoments:
        """Compute the moments of `x` [N, C, ...]."""
        wide = x.detach().double()
        count = x.numel() // x.shape[1]
        if wide.is_cuda and wide.is_contiguous(memory_format=torch.channels_last):
            # With the channels innermost it is faster than `var_mean`.
            mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        else:
            dims = [dim for dim in range(x.dim()) if dim != 1]
            var, mean = torch.var_mean(wide, dims, correction=0)
        return DeviceMoments(count, mean, var)


def choose_reader(device: torch.device, is_alone: bool) -> Reader:
    """Choose the reader for a device; `is_alone`: no other process waits for the moments of each layer."""
    has_float64 = device.type not in ("cpu", "mps")
    return DeviceReader() if has_float64 and is_alone else Reader()


def _widen(x: Tensor) -> Tensor:
    """Convert values to at least float32, on a device that has float64."""
    if x.device.type == "mps":  # which has none
        x = x.cpu()
    return x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()


def _read(x: Tensor) -> _Read:
    """Read `x` [N, C, ...] in the groups that are fastest in its layout in memory."""
    is_innermost = x.movedim(1, -1).is_contiguous()  # the channels, in memory
    if x.device.type == "cpu" and is_innermost:
        return _read_pixels(x)
    return _read_images(x)


def _read_pixels(x: Tensor) -> _Read:
    """Pixels side by side make up to `_HEIGHT` rows, or more; the pixels that are left over, a block of their own.

    Torch's routine adds up n rows one after the other, and rounds the sum each time: with u = 2⁻²⁴, the rounding of
    float32, the root mean square of the mean's error is sqrt(n)·u/3 of |μ|, the largest error four times that. Over g
    groups the errors average out, so that the bound grows with sqrt(g), up to 16.
    """
    channels = x.shape[1]
    pixels = x.numel() // channels
    # A row has as many pixels as it takes to need no more than `_HEIGHT` rows, if the width allows that.
    side = max(1, min(_WIDTH // channels, math.ceil(pixels / _HEIGHT)))
    rows, rest = divmod(pixels, side)
    shapes = [(min(_HEIGHT, rows - row), side * channels) for row in range(0, rows, _HEIGHT)]
    if rest:
        shapes.append((rest, channels))

    blocks: dict[int, list[Tensor]] = {}
    offset = x.storage_offset()
    for height, width in shapes:
        # Shape [1, width, rows, 1] with the width innermost is channels_last whatever the sizes are.
        image = x.as_strided((1, width, height, 1), (height * width, 1, width, width), offset)
        # The momentum is not used, because there are no running buffers to update. The variance has ddof 0.
        mean, var = torch.batch_norm_update_stats(image, None, None, 0.0)
        blocks.setdefault(height, []).append(torch.stack((mean, var)).view(2, -1, channels))
        offset += height * width

    groups: list[Groups] = []
    for height, of_height in blocks.items():
        means, variances = torch.cat(of_height, dim=1).double()
        groups.append((height, means, variances))
    count = sum(len(means) for _, means, _ in groups)
    return _Read(groups, min(16.0, math.sqrt(count)))


def _read_images(x: Tensor) -> _Read:
    """Each image is a group, of sums of float32 values and of squares.

    A sum of squares is off by 1e-7 of E[x²] = σ²(1 + (μ/σ)²).
    """
    images = x.reshape(*x.shape[:2], -1)
    size = images.shape[2]
    dtype = torch.float64 if size > _LONG else None  # a float32 sum of squares loses more, the longer the rows are
    mean = images.sum(dim=2, dtype=dtype).double() / size
    # `vector_norm` adds up squares without a tensor of all squares.
    norm = torch.linalg.vector_norm(images, dim=2, dtype=dtype).double()
    # Rounding may make the difference slightly negative.
    var = norm.square().div_(size).sub_(mean.square()).clamp_(min=0)
    return _Read([(size, mean, var)], 2.0)


def _merge(groups: Sequence[Groups]) -> DeviceMoments:
    """Merge groups of one size or of several.

    The variance is that within groups and that of their means. These are taken about one of them first: the weighted
    sum of small differences, not the difference of large sums.
    """
    first_size, first_means, first_variances = groups[0]
    origin = first_means[0]
    if len(groups) == 1 and len(first_means) == 1:
        return DeviceMoments(first_size, origin, first_variances[0])

    # The groups of each size become one, whose mean is taken about `origin`.
    merged = []
    for size, means, variances in groups:
        offsets = means - origin
        offset = offsets.mean(0)
        # In place, because there may be a row for each image of the data.
        offsets -= offset
        squares = offsets.square_()
        var = squares.add_(variances).mean(0)
        merged.append(DeviceMoments(size * len(means), offset, var))
    if len(merged) == 1:
        only = merged[0]
        return DeviceMoments(only.count, origin + only.mean, only.var)

    # Once more for the sizes: their variances, and the squared distances of their means from the mean of all.
    total = sum(each.count for each in merged)
    offset = torch.stack([each.mean * (each.count / total) for each in merged]).sum(0)
    var = torch.zeros_like(offset)
    for each in merged:
        between = (each.mean - offset).square_()
        var += between.add_(each.var) * (each.count / total)
    return DeviceMoments(total, origin + offset, var)
