"""Standard errors of a layer's moments, with images as the independent units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.borrow import measured
from bnlab.exact.inputs import Values
from bnlab.exact.task import CALLER, Layers, Task, watched
from bnlab.exact.units import Images
from bnlab.layers import join_names
from bnlab.moments import Moments
from bnlab.reading import read
from bnlab.statistics import Statistics
from bnlab.warn import warn

LEAST_BATCHES = 8  # fewer say little about how batches scatter


@dataclass
class _Spread:
    """Sums over a layer's calls, of what each image adds to the errors of mean and variance.

    Attributes:
        of_images: float64 [2, C], Σ over images of the square of what each adds.
        of_batches: the same over batches.
        images, batches: how many there were.
    """

    of_images: Tensor
    of_batches: Tensor
    images: int = 0
    batches: int = 0

    @staticmethod
    def empty(channels: int) -> _Spread:
        """Before any call."""
        zeros = torch.zeros(2, channels, dtype=torch.float64)
        return _Spread(zeros, zeros.clone())

    def add(self, by_image: Tensor) -> None:
        """Take in a call: [2, images, C], what each image adds to mean and variance."""
        self.of_images += by_image.square().sum(1)
        self.of_batches += by_image.sum(1).square()
        self.images += by_image.shape[1]
        self.batches += 1

    def merge(self, other: _Spread) -> None:
        """Take in the calls of another process."""
        self.of_images += other.of_images
        self.of_batches += other.of_batches
        self.images += other.images
        self.batches += other.batches


class UnitsOfErrors(NamedTuple):
    """Layers whose standard errors are of batches, not of images.

    Attributes:
        scattered: where batches scatter more than the rows that were taken for images.
        unequal: where rows are no equal blocks of as many images as the caller says.
    """

    scattered: list[str]
    unequal: list[str]


def measure_errors(
    task: Task, images: Images, statistics: Statistics, upstream: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], UnitsOfErrors]:
    """Of each layer's mean and variance, float64 [C]: from the spread of the images' means and second moments.

    One pass of ordinary forwards under the statistics, which are taken as they are: upstream layers' errors are not in
    it. Where `images` are not told, rows of a layer's input are taken for them; rows that belong together (crops,
    frames) are noticed where batches scatter far more than that explains, and then batches are the units.

    Returns:
        Errors by layer, and the layers where batches are the units.

    Raises:
        ValueError: the images that the caller says fit the rows of no layer.
    """
    spreads, unequal = _gather_spreads(task, images, statistics, upstream)
    if len(unequal) == len(spreads):
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
        if name in unequal:
            by_image = by_batch
        elif not images.is_told and _belong_together(spread, by_image, by_batch):
            scattered.append(name)
            by_image = by_image.maximum(by_batch)
        errors[name] = (by_image[0], by_image[1])
    return errors, UnitsOfErrors(scattered, unequal)


def warn_of_units(units: UnitsOfErrors) -> None:
    """Say where batches are the units."""
    if units.scattered:
        warn(
            f"{CALLER}: batches differ by far more at {join_names(units.scattered)} than independent rows would; the "
            "standard errors are of batches there. Say which rows are one image with images=, or shuffle"
        )
    if units.unequal:
        warn(
            f"{CALLER}: the rows at {join_names(units.unequal)} are no equal blocks of as many images as images= says; "
            "the standard errors are of batches there"
        )


def _gather_spreads(
    task: Task, images: Images, statistics: Statistics, upstream: str
) -> tuple[dict[str, _Spread], list[str]]:
    """The spread of each layer, and the layers whose rows are no equal blocks of images in some batch."""
    layers = {name: task.layers[name] for name in statistics}
    spreads = {name: _Spread.empty(len(moments.mean)) for name, moments in statistics.items()}

    unequal = set[str]()

    def run_all() -> None:
        for batch in task.data:
            for name, by_image in _read_batch(task, layers, images, statistics, batch, unequal).items():
                spreads[name].add(by_image)

    with measured(task.model):
        for name, layer in layers.items():
            task.buffers.write(name, statistics[name])
            layer.training = upstream == "batch"
        task.ranks.together(run_all)
    unequal = unequal.union(*task.ranks.gather(unequal))
    named = [name for name in spreads if name in unequal]
    if task.ranks.is_alone:
        return spreads, named
    merged = {name: _Spread.empty(len(moments.mean)) for name, moments in statistics.items()}
    for own_spreads in task.ranks.gather(spreads):
        for name, spread in own_spreads.items():
            merged[name].merge(spread)
    return merged, named


def _read_batch(
    task: Task, layers: Layers, images: Images, statistics: Statistics, batch: Any, unequal: set[str]
) -> dict[str, Tensor]:
    """Evaluate a batch: what each of its images adds to the errors of each layer, float64 [2, images, C].

    A layer whose rows are no equal blocks of images goes to `unequal`, and all of its rows are taken for one.
    """
    calls: dict[str, list[Tensor]] = {}

    def take(name: str, values: Values) -> None:
        whole = statistics[name]
        own = _select(whole, values.channels)
        ((count, mean, var),) = read(values.x, own.mean, by_image=True).groups()  # of one size in one call
        offset = mean - own.mean
        second_moment = var + offset.square()
        deviations = torch.stack((offset, second_moment - own.var))
        added = deviations * (count / own.count)  # images weigh by their values; equal ones by 1/N
        by_image = images.sum_by_image(batch, added)
        if by_image is None:
            unequal.add(name)
            by_image = added.sum(1, keepdim=True)
        if values.channels is not None:
            unknown = torch.full((2, by_image.shape[1], len(whole.mean)), math.nan, dtype=torch.float64)
            by_image = unknown.index_copy(2, values.channels, by_image)
        calls.setdefault(name, []).append(by_image)

    with watched(task, layers, take):
        task.evaluate(batch)
    return {name: _join_calls(parts) for name, parts in calls.items()}


def _join_calls(parts: list[Tensor]) -> Tensor:
    """Sum the calls of a layer that is called several times with the same images; others are images of their own."""
    if all(part.shape == parts[0].shape for part in parts):
        return torch.stack(parts).sum(0)
    return torch.cat(parts, dim=1)


def _select(moments: Moments, channels: Tensor | None) -> Moments:
    if channels is None:
        return moments
    return Moments(moments.count, moments.mean[channels], moments.var[channels])


def _estimate(squares: Tensor, units: int) -> Tensor:
    """Standard errors [2, C] from the squares that so many independent units add."""
    if units < 2:
        return squares * math.nan
    return (squares * units / (units - 1)).sqrt()


def _belong_together(spread: _Spread, by_image: Tensor, by_batch: Tensor) -> bool:
    """Whether batches scatter far more than independent rows would make them.

    The ratio of the two variances has mean 1 then, and a standard deviation of sqrt(2/(B−1)) in one channel.
    """
    if spread.batches < 2:
        return False
    ratios = (by_batch / by_image).square()
    known = ratios[ratios.isfinite()]
    deviation = math.sqrt(2 / (spread.batches - 1))
    return float(known.mean()) > 1 + 4 * deviation


def find_worst_error(statistics: Statistics) -> float:
    """The largest relative standard error of a layer, root mean square over its channels; inf if not known."""
    worst = 0.0
    for name, (of_mean, of_var) in (statistics.standard_errors or {}).items():
        var = statistics[name].var.clamp(min=torch.finfo(torch.float64).tiny)  # a dead channel has no error
        for relative in (of_mean / var.sqrt(), of_var / var):
            known = relative[relative.isfinite()]  # channels that were not measured have none
            root_mean_square = float(known.square().mean().sqrt()) if len(known) else math.inf
            worst = max(worst, root_mean_square)
    return worst
