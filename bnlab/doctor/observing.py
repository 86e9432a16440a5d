"""How a loader's batches differ, seen by each layer while all layers normalize with each batch's own statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import count_images
from bnlab.borrow import measured
from bnlab.doctor.by_batch import positive_eps
from bnlab.exact.inputs import Values
from bnlab.exact.task import Task, watched
from bnlab.moments import Moments


@dataclass
class Scatter:
    """Mean and variance of rows [C], of which there are more and more; rows of more values weigh more.

    Attributes:
        count: rows so far.
        weight: sum of their weights.
        mean: float64 [C].
        squares: float64 [C], sum of squared deviations from the mean, each times its row's weight.
    """

    count: int
    weight: float
    mean: Tensor
    squares: Tensor

    @staticmethod
    def empty(channels: int, device: torch.device) -> Scatter:
        """Make the scatter of no rows."""
        zeros = torch.zeros(channels, dtype=torch.float64, device=device)
        return Scatter(0, 0.0, zeros, zeros.clone())

    def add(self, rows: Tensor, each: float = 1.0) -> None:
        """Add rows [N, C] of one weight each, all at once (Chan, Golub & LeVeque 1979)."""
        weight = each * len(rows)
        mean = rows.mean(0)
        squares = each * (rows - mean).square().sum(0)
        total = self.weight + weight
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.weight * weight / total)
        self.mean = self.mean + delta * (weight / total)
        self.weight = total
        self.count += len(rows)

    @property
    def var(self) -> Tensor:
        """Variance [C] of a row of average weight, with divisor count − 1; NaN of fewer than two rows.

        Rows that are means of as many values as they weigh have variances that fall with their weights: a last batch
        that is smaller than the others does not make these look unlike.
        """
        if self.count < 2:
            return torch.full_like(self.squares, torch.nan)
        return self.squares / (self.count - 1) * (self.count / self.weight)


MOST_CALLS = 8  # calls of one layer in a forward that are told apart


@dataclass
class LayerView:
    """What a layer was given, batch by batch.

    Attributes:
        batch_means: scatter of the batches' means, weighed by their values.
        image_means: scatter of the images' means, within all batches; empty where the layer's rows are no images.
        center: mean of the first batch [C], about which squares are.
        batch_squares: scatter of the batches' mean squares, weighed by their values.
        image_squares: scatter of the images' mean squares; both are empty where the layer's rows are no images.
        calls: pooled moments of the first call in a forward, of the second, and so on; at most `MOST_CALLS`.
        changes: scatter of the change of an image's mean and mean square [2C] from the first call in a forward to the
            second, to the third, and so on; empty where these are given no images, or other numbers of them.
        values: values in each channel of a batch, the largest one's.
    """

    batch_means: Scatter
    image_means: Scatter
    center: Tensor
    batch_squares: Scatter
    image_squares: Scatter
    calls: list[Moments] = field(default_factory=list)
    changes: list[Scatter] = field(default_factory=list)
    values: int = 0
    _first: Tensor | None = None  # means and mean squares of images [N, 2C] of the first call in the latest forward

    @staticmethod
    def empty(channels: int, device: torch.device) -> LayerView:
        """Make the view of no batch."""
        means, image_means, squares, image_squares = (Scatter.empty(channels, device) for _ in range(4))
        return LayerView(means, image_means, means.mean, squares, image_squares)

    @property
    def pooled(self) -> Moments:
        """Moments over all calls and batches."""
        merged = self.calls[0]
        for moments in self.calls[1:]:
            merged = merged.merge(moments)
        return merged

    def add_call(self, number: int, moments: Moments) -> None:
        """Add a batch's moments, of the call with this number in its forward."""
        if self.batch_means.count == 0:
            self.center = moments.mean
        self.values = max(self.values, int(moments.count))
        self.batch_means.add(moments.mean[None], each=moments.count)
        if number < len(self.calls):
            self.calls[number] = self.calls[number].merge(moments)
        elif number < MOST_CALLS:
            self.calls.append(moments)
        if number == 0:
            self._first = None

    def add_images(self, number: int, x: Tensor) -> None:
        """Add the means and mean squares of a batch of images [N, C, ...], of the call with this number, after its
        moments."""
        values = x.detach()[..., None].flatten(2)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        center = self.center.to(values)[:, None]
        squares = (values - center).square_().mean(2).to(self.center)
        means = values.mean(2).to(self.center)
        self.image_means.add(means)
        self.image_squares.add(squares)
        self.batch_squares.add(squares.mean(0, keepdim=True), each=values[:, 0].numel())
        self._add_changes(number, torch.cat((means, squares), 1))

    def _add_changes(self, number: int, rows: Tensor) -> None:
        """Add how images' means and mean squares [N, 2C] differ from those of the first call in the same forward."""
        if number == 0:
            self._first = rows
        elif self._first is not None and number < MOST_CALLS:
            while len(self.changes) < number:
                self.changes.append(Scatter.empty(rows.shape[1], rows.device))
            self.changes[number - 1].add(rows - self._first)

    def fetch(self) -> None:
        """Bring all to the CPU."""
        scatters = (self.batch_means, self.image_means, self.batch_squares, self.image_squares)
        for scatter in (*scatters, *self.changes):
            scatter.mean = scatter.mean.cpu()
            scatter.squares = scatter.squares.cpu()
        self.calls = [Moments(call.count, call.mean.cpu(), call.var.cpu()) for call in self.calls]
        self._first = None


@dataclass(frozen=True)
class View:
    """What all layers were given in a pass under each batch's own statistics.

    Attributes:
        layers: by name; layers that no batch has reached, or that are given some of their channels, are not there.
        batches: number of batches.
        batch_size: images in a batch, on average.
    """

    layers: dict[str, LayerView]
    batches: int
    batch_size: float


def observe_batches(
    task: Task, take_output: Callable[[Any, Any], object] | None = None, *, train: frozenset[str] = frozenset()
) -> View:
    """Run all batches once, with each layer normalizing by its batch, and note what layers are given.

    A layer that is given a single value in each channel, which has no variance, normalizes with its buffers.

    Args:
        task: the model, its layers and the data.
        take_output: called with each batch and the model's output, where these are wanted.
        train: names of further modules that are in train mode meanwhile, such as dropout.

    Returns:
        What the layers saw. The model comes back as it was.
    """
    layers: dict[str, LayerView] = {}
    numbers: dict[str, int] = {}
    images = 0
    size = 0

    def note(name: str, values: Values) -> None:
        number = numbers.get(name, 0)
        numbers[name] = number + 1
        pooled = task.reader.measure(values.x)
        moments = Moments(pooled.count, pooled.mean, pooled.var)  # on the device, which nobody waits for
        task.layers[name].training = moments.count > 1
        if values.channels is not None:
            return
        if name not in layers:
            layers[name] = LayerView.empty(values.x.shape[1], moments.mean.device)
        layers[name].add_call(number, moments)
        if len(values.x) == size:
            layers[name].add_images(number, values.x)

    modules = dict(task.model.named_modules())
    with measured(task.model), positive_eps(task.layers):
        for layer in task.layers.values():
            layer.training = True
        for name in train:
            modules[name].training = True
        with watched(task, task.layers, note):
            for batch in task.data:
                numbers.clear()
                size = count_images(batch)
                images += size
                output = task.evaluate(batch)
                if take_output is not None:
                    take_output(batch, output)
    for view in layers.values():
        view.fetch()
    return View(layers, len(task.data), images / len(task.data))
