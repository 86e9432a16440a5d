"""How a loader's batches differ, seen by each layer while all layers normalize with each batch's own statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.common.precision import widen
from bnlab.doctor.undo import normalize_each_batch
from bnlab.exact.task import Task, watched
from bnlab.model.batches import count_images
from bnlab.model.borrow import measured
from bnlab.statistics.moments import Moments

MOST_CALLS = 8  # calls of one layer in a forward that are told apart


@dataclass(frozen=True)
class Scatter:
    """Mean and variance of rows [C], of which those of more values weigh more.

    Attributes:
        count: number of rows.
        mean: float64 [C].
        var: float64 [C], variance of a row of average weight, with divisor count − 1; NaN of fewer than two rows. Rows
            that are means of as many values as they weigh have variances that fall with their weights: a last batch
            that is smaller than the others does not make these look unlike.
    """

    count: int
    mean: Tensor
    var: Tensor

    @staticmethod
    def of(rows: int, merged: Moments) -> Scatter:
        """Make the scatter of so many rows, merged by their weights."""
        # `Moments` divide by the sum of the weights, which is ddof 0 where all rows weigh the same.
        correction = rows / (rows - 1) if rows > 1 else math.nan
        return Scatter(rows, merged.mean.cpu(), merged.var.cpu() * correction)


@dataclass(frozen=True)
class LayerView:
    """What a layer was given, batch by batch; on the CPU.

    Attributes:
        batch_means: scatter of the batches' means, weighed by their values.
        image_means: scatter of the images' means, within all batches; empty where the layer's rows are no images.
        batch_squares: scatter of the batches' mean squares about the first batch's mean, weighed by their values.
        image_squares: scatter of the images' mean squares; both are empty where the layer's rows are no images.
        calls: pooled moments of the first call in a forward, of the second, and so on; at most `MOST_CALLS`.
        values: values in each channel of a batch, the largest one's.
    """

    batch_means: Scatter
    image_means: Scatter
    batch_squares: Scatter
    image_squares: Scatter
    calls: Sequence[Moments]
    values: int

    @property
    def pooled(self) -> Moments:
        """Moments over all calls and batches."""
        merged = self.calls[0]
        for moments in self.calls[1:]:
            merged = merged.merge(moments)
        return merged


class _Watch:
    """What a layer has been given so far, on its device; squares are about the first batch's mean [C]."""

    def __init__(self, center: Tensor) -> None:
        nothing = Moments.empty(len(center))
        self._center = center
        self._calls: list[Moments] = []

        self._batch_means = nothing
        self._batches = 0
        self._values = 0

        self._images = nothing
        self._batch_squares = nothing
        self._image_batches = 0

    def add_call(self, number: int, moments: Moments) -> None:
        """Add a batch's moments, of the call with this number in its forward."""
        self._batches += 1
        self._values = max(self._values, int(moments.count))
        self._batch_means = self._batch_means.merge(_weigh(moments.mean, moments.count))
        # Calls are kept apart as long as there are few of them; later ones are left out.
        if number >= MOST_CALLS:
            return
        if number == len(self._calls):  # no forward before has called the layer so often
            self._calls.append(moments)
        else:
            self._calls[number] = self._calls[number].merge(moments)

    def add_images(self, x: Tensor) -> None:
        """Add the means and mean squares of a batch of images [N, C, ...]."""
        # Inputs [N, C] have no pixels; the further axis gives them one.
        values = x.detach()[..., None].flatten(2)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        images, channels, pixels = values.shape

        means = values.mean(2)
        # About 0, squares of channels that lie far from it would say hardly anything of their spread.
        off = values - self._center.to(values)[:, None]
        squares = off.square_().mean(2)
        rows = widen(torch.cat((means, squares), 1)).to(self._center)

        of_batch = Moments(images, rows.mean(0), rows.var(0, correction=0))
        # The empty moments cannot be merged with rows, which have means and squares and so are twice as long.
        self._images = of_batch if self._image_batches == 0 else self._images.merge(of_batch)
        self._image_batches += 1
        self._batch_squares = self._batch_squares.merge(_weigh(of_batch.mean[channels:], images * pixels))

    def fetch(self) -> LayerView:
        """Bring all to the CPU."""
        images = int(self._images.count)
        both = Scatter.of(images, self._images)
        # Each row has means and squares side by side. If no batch was of images, `_images` is still empty and
        # half as long: then only the count of 0 may be read.
        mean_of_means, mean_of_squares = both.mean.tensor_split(2)
        var_of_means, var_of_squares = both.var.tensor_split(2)
        image_means = Scatter(images, mean_of_means, var_of_means)
        image_squares = Scatter(images, mean_of_squares, var_of_squares)

        calls = [Moments(call.count, call.mean.cpu(), call.var.cpu()) for call in self._calls]
        batch_means = Scatter.of(self._batches, self._batch_means)
        batch_squares = Scatter.of(self._image_batches, self._batch_squares)
        return LayerView(batch_means, image_means, batch_squares, image_squares, calls, self._values)


def _weigh(row: Tensor, weight: float) -> Moments:
    """Make the moments of a row that counts so much."""
    return Moments(weight, row, torch.zeros_like(row))


@dataclass(frozen=True)
class View:
    """What all layers were given in a pass under each batch's own statistics.

    Attributes:
        layers: by name; layers that no batch has reached are not there.
        batches: number of batches.
        batch_size: images in a batch, on average.
    """

    layers: Mapping[str, LayerView] = field(default_factory=dict)
    batches: int = 0
    batch_size: float = 0.0


@dataclass
class CallLog:
    """What layers are given while a caller's metric runs the model: moments of each call, in their order."""

    calls: dict[str, list[Moments]] = field(default_factory=dict)

    def note(self, task: Task, name: str, x: Tensor) -> None:
        pooled = task.reader.measure(x)
        self.calls.setdefault(name, []).append(Moments(pooled.count, pooled.mean, pooled.var))

    def group(self) -> dict[str, list[Moments]]:
        """Pool the calls of each layer in two groups: every other call, or first and last ones, whichever differ more.

        That is how a metric takes turns between two kinds of inputs. The first layer decides for all; layers that are
        called another number of times are left out.
        """
        if not self.calls:
            return {}
        first = next(iter(self.calls.values()))
        if len(first) < 2:
            return {}
        half = len(first) // 2
        # Two kinds of inputs may alternate from call to call, or one kind may come after the other.
        ways = [(slice(0, None, 2), slice(1, None, 2)), (slice(0, half), slice(half, None))]
        chosen = max(ways, key=lambda way: measure_share(_pool_parts(first, way)))
        as_often = {name: calls for name, calls in self.calls.items() if len(calls) == len(first)}
        return {name: _pool_parts(calls, chosen) for name, calls in as_often.items()}


def _pool_parts(calls: Sequence[Moments], parts: Sequence[slice]) -> list[Moments]:
    """Pool each part of the calls by itself."""
    return [_pool(calls[part]) for part in parts]


def _pool(calls: Sequence[Moments]) -> Moments:
    """Pool moments, on the CPU."""
    merged = calls[0]
    for moments in calls[1:]:
        merged = merged.merge(moments)
    return Moments(merged.count, merged.mean.cpu(), merged.var.cpu())


def measure_share(groups: Sequence[Moments]) -> float:
    """Measure which share of the variance lies between the means of groups, the mean over channels."""
    pooled = _pool(groups)
    # The mean over channels leaves out dead ones, which have no variance to be shared.
    within = sum(group.var * group.count for group in groups) / pooled.count
    return float((1 - within / pooled.var).nanmean())


def observe_batches(
    task: Task, take_output: Callable[[Any, Any], object] | None = None, *, train: Iterable[nn.Module] = ()
) -> View:
    """Run all batches once, with each layer normalizing by its batch, and note what layers are given.

    A layer that is given a single value in each channel, which has no variance, normalizes with its buffers.

    Args:
        task: the model, its layers and the data.
        take_output: called with each batch and the model's output, where these are wanted.
        train: further modules that are in train mode meanwhile, such as dropout.

    Returns:
        What the layers saw. The model comes back as it was.
    """
    watches: dict[str, _Watch] = {}
    numbers: dict[str, int] = {}
    size = 0

    def note(name: str, x: Tensor) -> None:
        number = numbers.get(name, 0)
        numbers[name] = number + 1
        pooled = task.reader.measure(x)
        moments = Moments(pooled.count, pooled.mean, pooled.var)  # on the device, which nobody waits for
        if name not in watches:
            watches[name] = _Watch(moments.mean)
        watch = watches[name]
        watch.add_call(number, moments)
        # With as many rows as the batch has images, rows are images, not tokens or graph nodes.
        if len(x) == size:
            watch.add_images(x)

    with measured(task.root), ExitStack() as stack:
        normalize_each_batch(task.layers)(task.root, stack)
        # Only now, because the loan has put all modules into eval mode; it also puts these back.
        for module in train:
            module.training = True
        with watched(task, task.layers, note):
            for batch in task.data:
                numbers.clear()
                size = count_images(batch)
                output = task.evaluate(batch)
                if take_output is not None:
                    take_output(batch, output)
    layers = {name: watch.fetch() for name, watch in watches.items()}
    batches = len(task.data)
    images = sum(map(count_images, task.data))
    return View(layers, batches, batch_size=images / batches)
