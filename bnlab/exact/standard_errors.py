"""Standard errors of a layer's mean and variance, with images as the independent units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import ImageCounter
from bnlab.borrow import measured
from bnlab.exact.task import CALLER, Task, watched
from bnlab.layers import Values, join_names
from bnlab.moments import Moments
from bnlab.reading import read
from bnlab.statistics import Statistics

LEAST_BATCHES = 8  # with fewer one cannot see how batches scatter


@dataclass
class _Spread:
    """Spread of what images and batches contribute to a layer's mean and variance, summed over batches.

    A contribution is the share that an image has in the difference from the statistics of all images.

    Attributes:
        of_images: float64 [2, C], sum over images of the squared contributions to mean and variance.
        of_batches: the same over batches.
        images, batches: how many there were.
    """

    of_images: Tensor
    of_batches: Tensor
    images: int = 0
    batches: int = 0

    @staticmethod
    def empty(channels: int) -> _Spread:
        """Make the spread before any batch."""
        zeros = torch.zeros(2, channels, dtype=torch.float64)
        return _Spread(zeros, zeros.clone())

    def add(self, by_image: Tensor) -> None:
        """Add a batch: the contributions of its images to mean and variance, [2, images, C]."""
        self.of_images += by_image.square().sum(1)
        self.of_batches += by_image.sum(1).square()
        self.images += by_image.shape[1]
        self.batches += 1

    def merge(self, other: _Spread) -> None:
        """Add the batches of another process."""
        self.of_images += other.of_images
        self.of_batches += other.of_batches
        self.images += other.images
        self.batches += other.batches


def measure_errors(
    task: Task, counter: ImageCounter, statistics: Statistics, upstream: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """Estimate standard errors of each layer's mean and variance, from how the images' moments scatter.

    One pass of ordinary forwards under the statistics. These are taken as they are: the errors do not contain those of
    earlier layers. If the caller does not say what the images are, each row of a layer's input is taken for one. Rows
    that belong together (crops, frames) are noticed, because batches then scatter far more than independent rows would
    explain; batches are the units of such a layer.

    Returns:
        Layer → errors of mean and of variance, float64 [C] each; and warnings of layers of which batches are the units.

    Raises:
        ValueError: the images that the caller says fit the rows of no layer.
    """
    spreads, uneven = _gather_spreads(task, counter, statistics, upstream)
    if len(uneven) == len(spreads):
        raise ValueError(
            f"{CALLER}: images= says a number of images, and no layer gets as many equal blocks of rows in every "
            "batch; return an id for each row"
        )
    errors = {}
    scattered = []
    for name in statistics:
        spread = spreads[name]
        by_image = _estimate(spread.of_images, spread.images)
        by_batch = _estimate(spread.of_batches, spread.batches)
        if name in uneven:
            by_image = by_batch
        elif not counter.is_given and _belong_together(spread, by_image, by_batch):
            scattered.append(name)
            by_image = by_image.maximum(by_batch)
        errors[name] = (by_image[0], by_image[1])

    warnings = []
    if scattered:
        warnings.append(
            f"{CALLER}: batches differ by far more at {join_names(scattered)} than independent rows would; there the "
            "standard errors take whole batches for independent. Say which rows are one image with images=, or shuffle"
        )
    if uneven:
        warnings.append(
            f"{CALLER}: the rows at {join_names(uneven)} are no equal blocks of as many images as images= says; there "
            "the standard errors take whole batches for independent"
        )
    return errors, warnings


def _gather_spreads(
    task: Task, counter: ImageCounter, statistics: Statistics, upstream: str
) -> tuple[dict[str, _Spread], list[str]]:
    """Evaluate all batches: the spread of each layer over all ranks, and the layers with uneven rows in some batch."""
    spreads = {name: _Spread.empty(len(moments.mean)) for name, moments in statistics.items()}
    uneven = set[str]()

    def run_all() -> None:
        for batch in task.data:
            contributions, uneven_here = _read_batch(task, counter, statistics, batch)
            uneven.update(uneven_here)
            for name, by_image in contributions.items():
                spreads[name].add(by_image)

    with measured(task.model):
        for name, moments in statistics.items():
            task.write(name, moments)
            task.layers[name].training = upstream == "batch"
        task.ranks.run_together(run_all)

    of_all_ranks = set[str]().union(*task.ranks.gather(uneven))
    merged = {name: _Spread.empty(len(moments.mean)) for name, moments in statistics.items()}
    for rank_spreads in task.ranks.gather(spreads):
        for name, spread in rank_spreads.items():
            merged[name].merge(spread)
    return merged, [name for name in merged if name in of_all_ranks]


def _read_batch(
    task: Task, counter: ImageCounter, statistics: Statistics, batch: Any
) -> tuple[dict[str, Tensor], set[str]]:
    """Evaluate a batch.

    Returns:
        Layer → contribution of each image to its mean and variance, float64 [2, images, C]; and the layers whose rows
        are not equal blocks of images, of which the whole batch is taken for one image.
    """
    calls: dict[str, list[Tensor]] = {}
    uneven = set[str]()

    def take(name: str, values: Values) -> None:
        contributions = _compute_contributions(statistics[name], values)
        by_image = counter.sum_by_image(batch, contributions)
        if by_image is None:
            uneven.add(name)
            by_image = contributions.sum(1, keepdim=True)
        if values.channels is not None:  # nothing is known of the others
            shape = (2, by_image.shape[1], len(statistics[name].mean))
            unknown = torch.full(shape, math.nan, dtype=torch.float64)
            by_image = unknown.index_copy(2, values.channels, by_image)
        calls.setdefault(name, []).append(by_image)

    layers = {name: task.layers[name] for name in statistics}
    with watched(task, layers, take):
        task.evaluate(batch)
    return {name: _join_calls(parts) for name, parts in calls.items()}, uneven


def _compute_contributions(whole: Moments, values: Values) -> Tensor:
    """Compute what each row of a layer's input contributes to the mean and variance of the whole, float64 [2, rows, C].

    Rows weigh by their number of values; if all have as many, each of N rows weighs 1/N.
    """
    expected = _select(whole, values.channels)
    ((count, mean, var),) = read(values.x, expected.mean, by_image=True).groups()  # rows of one call have one size
    offset = mean - expected.mean
    second_moment = var + offset.square()
    deviations = torch.stack((offset, second_moment - expected.var))
    return deviations * (count / expected.count)


def _join_calls(parts: list[Tensor]) -> Tensor:
    """Sum the calls of a layer that is called several times with the same images; put others side by side."""
    if all(part.shape == parts[0].shape for part in parts):
        return torch.stack(parts).sum(0)
    return torch.cat(parts, dim=1)


def _select(moments: Moments, channels: Tensor | None) -> Moments:
    if channels is None:
        return moments
    return Moments(moments.count, moments.mean[channels], moments.var[channels])


def _estimate(squares: Tensor, units: int) -> Tensor:
    """Estimate standard errors [2, C] from the sum of squared contributions of so many independent units."""
    if units < 2:
        return squares * math.nan
    return (squares * units / (units - 1)).sqrt()


def _belong_together(spread: _Spread, by_image: Tensor, by_batch: Tensor) -> bool:
    """Return whether batches scatter far more than independent rows would make them.

    With independent rows the ratio of the two variances has mean 1, and in one channel a standard deviation of
    sqrt(2/(B−1)) over B batches.
    """
    if spread.batches < 2:
        return False
    ratios = (by_batch / by_image).square()
    known = ratios[ratios.isfinite()]
    deviation = math.sqrt(2 / (spread.batches - 1))
    return float(known.mean()) > 1 + 4 * deviation


def compute_worst_error(statistics: Statistics) -> float:
    """Compute the largest relative standard error of a layer, root mean square over its channels; inf if not known."""
    worst = 0.0
    for name, (of_mean, of_var) in (statistics.standard_errors or {}).items():
        var = statistics[name].var.clamp(min=torch.finfo(torch.float64).tiny)  # a dead channel has no error
        for relative in (of_mean / var.sqrt(), of_var / var):
            known = relative[relative.isfinite()]  # channels that were not measured have none
            root_mean_square = float(known.square().mean().sqrt()) if len(known) else math.inf
            worst = max(worst, root_mean_square)
    return worst
