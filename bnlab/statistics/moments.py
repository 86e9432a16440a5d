"""Count, mean and variance of a layer's input, and how two of them become one.

All values are kept in float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.model.reading import DeviceMoments, Reader


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

    def __post_init__(self) -> None:
        """Make tensors that can be written into, also of those that were made in `torch.inference_mode()`."""
        for name in ("mean", "var"):
            values = getattr(self, name)
            if values.is_inference():
                with torch.inference_mode(False):
                    object.__setattr__(self, name, values.clone())

    @staticmethod
    def of(x: Tensor) -> Moments:
        """Measure `x` [N, C, ...] over all axes but the second.

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

        pooled = Reader().measure(x)
        return Moments(pooled.count, pooled.mean.cpu(), pooled.var.cpu())

    @staticmethod
    def empty(channels: int) -> Moments:
        """Make the moments before any data: count 0, mean and var NaN [C]. Neutral in `merge`."""
        # Moments are on the CPU, whatever default device the caller has set.
        nan = torch.full((channels,), torch.nan, dtype=torch.float64, device="cpu")
        return Moments(0, nan, nan)

    def merge(self, other: Moments) -> Moments:
        """Combine the moments of two sets of values (Chan, Golub & LeVeque 1979), in float64.

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
        if math.isnan(self.count) or math.isnan(other.count):
            raise ValueError("merge: a running average has no count; merge measured moments only")
        # The moments of an empty side are NaN, and NaN times a count of 0 is still NaN.
        if self.count == 0:
            return other
        if other.count == 0:
            return self

        # Only the difference of the means is squared, because E[x²] − E[x]² would cancel where a mean is far above the
        # deviation.
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        within = self.var * self.count + other.var * other.count
        between = delta.square() * (self.count * other.count / count)
        return Moments(count, mean, (within + between) / count)


def compare_moments(reference: Moments, other: Moments, scale: Tensor | None = None) -> tuple[float, float]:
    """Compute the largest differences of a channel's mean, in σ, and of its variance, relative; 0 where both are dead.

    Args:
        scale: [C], the variance that both are relative to; default the reference's.
    """
    var = reference.var if scale is None else scale
    differences = torch.stack((other.mean - reference.mean, other.var - reference.var))
    # In a dead channel a difference of 0 gives 0/0, which counts as no difference. Any other NaN counts as the largest.
    ratios = differences.abs() / torch.stack((var.sqrt(), var))
    ratios = ratios.where(differences != 0, 0.0).nan_to_num(torch.inf, torch.inf)
    mean_off, var_off = ratios.amax(1).tolist()
    return mean_off, var_off


def fetch(pooled: Iterable[DeviceMoments]) -> list[Moments]:
    """Bring moments to the CPU, in one copy from each device."""
    listed = list(pooled)
    by_device: dict[torch.device, list[int]] = {}
    for number, one in enumerate(listed):
        by_device.setdefault(one.mean.device, []).append(number)

    # Each copy waits for the accelerator, so that all layers of a device are copied together.
    fetched: dict[int, Moments] = {}
    for numbers in by_device.values():
        values = [torch.stack((listed[number].mean, listed[number].var)) for number in numbers]
        channels = [value.shape[1] for value in values]
        copied = torch.cat(values, dim=1).cpu().split(channels, dim=1)
        for number, (mean, var) in zip(numbers, copied, strict=True):
            # A view would keep the memory of all layers alive.
            fetched[number] = Moments(listed[number].count, mean.clone(), var.clone())
    return [fetched[number] for number in range(len(listed))]
