"""Images scaled and shifted until the first layer's averages fit them: it shows a standardization that was forgotten.

The layer's input is taken to be linear in the images, as a convolution's is, so that its means on x, on 0 and on each
colour alone give those on any scale · x + shifts. Where it is not, the averages do not fit what is measured then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import take_images
from bnlab.doctor.first_layer import FirstLayer
from bnlab.doctor.images import change_images, find_images
from bnlab.moments import Moments
from bnlab.statistics import Statistics, read_buffers

_CHANNELS = 2  # of the layer, for each number that is fitted
_FEW = 2  # images of a single colour
_ROUNDS = 10
_DONE = 0.004  # log ratio of variances that is left
_LARGEST_STEP = 3.0  # of the log of the scale
_NEAR = 0.05
_FACTOR = 20.0  # scales beyond are ranges such as 0 to 255, and no standard deviations
_LARGEST = 7.0  # log of the scale, about 1,000


@dataclass(frozen=True)
class Rescaling:
    """What was done to images so that averages fit, x → scale · x + shifts.

    Attributes:
        scale: of all values, positive.
        shifts: float64 [colours].
        statistics: exact ones of the layer on the images as changed.
    """

    scale: float
    shifts: Tensor
    statistics: Statistics

    def __str__(self) -> str:
        """Say it as a standardization, what is subtracted by colour, and what it is divided by; or as a factor."""
        if not 1 / _FACTOR < self.scale < _FACTOR:
            return f"the images times {self.scale:.3g}"
        deviation = 1 / self.scale
        means = -self.shifts * deviation
        texts = [f"{mean:.2g}" for mean in means.tolist()]
        return f"(images - [{', '.join(texts)}]) / {deviation:.2g}"


def measure_rescaling(first: FirstLayer, sample: Sequence[Any], found: Moments) -> Rescaling | None:
    """Fit scale and shifts of the images to a layer's averages, and measure the layer on the images so changed.

    Args:
        first: the layer.
        sample: batches that begin with images [N, colours, H, W].
        found: its exact moments on the sample.

    Returns:
        None where the averages are near as it is, where the layer has too few channels to tell, where averages are not
        finite or variances 0, and where images as scaled overflow.
    """
    images = find_images(sample[0])
    assert images is not None
    colours = images.shape[1]
    running = read_buffers(first.layer).cpu().double()
    if running.shape[1] < _CHANNELS * (1 + colours):
        return None
    has_values = bool(running.isfinite().all()) and bool(running[1].min() > 0)
    if not has_values or _is_near(running, found):
        return None

    means = _measure_colours(first, take_images(sample[0], _FEW), colours)

    def measure_at(log_scale: float) -> Rescaling:
        scale = math.exp(log_scale)
        shifts = fit_shifts(running, found.mean, means, scale)
        changed = change_images(sample, partial(_rescale, scale, shifts))
        return Rescaling(scale, shifts, first.measure(changed))

    try:
        return _fit_scale(measure_at, lambda rescaling: _compare_variances(running, rescaling.statistics[first.name]))
    except ValueError:  # an overflow, as in low precision: what cannot be measured is no fit
        return None


def _measure_colours(first: FirstLayer, few: Any, colours: int) -> Tensor:
    """Measure a layer's means on images of 0, and on those that are 1 in a single colour, [1 + colours, C]."""
    means = []
    for colour in [torch.zeros(colours), *torch.eye(colours)]:
        of_colour = first.measure(_paint([few], colour))
        means.append(of_colour[first.name].mean)
    return torch.stack(means)


def _fit_scale(measure_at: Callable[[float], Rescaling], compare: Callable[[Rescaling], float]) -> Rescaling:
    """Find the scale at which variances agree, by secants.

    Without padding, the log ratio of variances falls by 2 where the log of the scale rises by 1. Where images are
    padded with 0, shifts change variances too.

    Args:
        measure_at: called with the log of a scale.
        compare: returns the log ratio of variances.
    """
    log_scale = 0.0
    step = 0.0
    slope = -2.0
    error = math.nan
    for _ in range(_ROUNDS):
        rescaling = measure_at(log_scale)
        before = error
        error = compare(rescaling)
        if abs(error) < _DONE:
            break
        if step:
            slope = (error - before) / step
        if not slope < 0:
            break  # not linear in the images

        wanted = log_scale + _limit(-error / slope, _LARGEST_STEP)
        wanted = _limit(wanted, _LARGEST)
        step = wanted - log_scale
        log_scale = wanted
    return rescaling


def _limit(value: float, most: float) -> float:
    """Limit the size of a value."""
    return max(-most, min(most, value))


def fit_shifts(running: Tensor, mean: Tensor, means: Tensor, scale: float) -> Tensor:
    """Fit shifts of the colours to running means, in units of σ, in least squares.

    Args:
        running: running mean and variance, float64 [2, C].
        mean: on the images as they are, float64 [C].
        means: on images of 0, and on those that are 1 in a single colour and else 0, float64 [1 + colours, C].
        scale: what the images are multiplied by before.

    Returns:
        float64 [colours].
    """
    base = means[0]
    sigma = running[1].sqrt()
    by_colour = (means[1:] - base) / sigma

    expected = base + scale * (mean - base)
    left = (running[0] - expected) / sigma
    return torch.linalg.lstsq(by_colour.T, left).solution


def _is_near(running: Tensor, found: Moments) -> bool:
    """Return whether means are off by less than .05 σ and variances by less than .05 (log), root mean squares."""
    gaps = (running[0] - found.mean) / found.var.sqrt()
    ratios = (running[1] / found.var).log()
    return all(float(off.square().mean().sqrt()) < _NEAR for off in (gaps, ratios))


def _compare_variances(running: Tensor, found: Moments) -> float:
    """Compute the median log ratio of running variances to those found."""
    return float((running[1] / found.var).log().nanmedian())


def _rescale(scale: float, shifts: Tensor, images: Tensor) -> Tensor:
    return scale * images + shifts.to(images).view(-1, 1, 1)


def _paint(batches: Sequence[Any], colour: Tensor) -> list[Any]:
    """Paint all pixels of images in a colour, given as float32 [colours]."""
    return change_images(batches, lambda part: torch.zeros_like(part) + colour.to(part).view(-1, 1, 1))
