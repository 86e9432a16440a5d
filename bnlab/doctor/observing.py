"""How a loader's batches differ, seen by each layer while all layers normalize with each batch's own statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import count_images
from bnlab.borrow import measured
from bnlab.exact.inputs import Values
from bnlab.exact.task import Task, watched
from bnlab.moments import Moments


@dataclass
class Scatter:
    """Mean and variance of rows [C], of which there are more and more.

    Attributes:
        count: rows so far.
        mean: float64 [C].
        squares: float64 [C], sum of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def empty(channels: int, device: torch.device) -> Scatter:
        """Make the scatter of no rows."""
        zeros = torch.zeros(channels, dtype=torch.float64, device=device)
        return Scatter(0, zeros, zeros.clone())

    def add(self, rows: Tensor) -> None:
        """Add rows [N, C], all at once (Chan, Golub & LeVeque 1979)."""
        count = len(rows)
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def var(self) -> Tensor:
        """Variance [C] with divisor count − 1; NaN of fewer than two rows."""
        return self.squares / (self.count - 1) if self.count > 1 else torch.full_like(self.squares, torch.nan)


@dataclass
class LayerView:
    """What a layer was given, batch by batch.

    Attributes:
        batch_means: scatter of the batches' means.
        image_means: scatter of the images' means, within all batches.
        calls: pooled moments of the first call in a forward, of the second, and so on; at most `MOST_CALLS`.
        values: values in each channel of a batch, the last one's.
    """

    batch_means: Scatter
    image_means: Scatter
    calls: list[Moments] = field(default_factory=list)
    values: int = 0

    @property
    def pooled(self) -> Moments:
        """Moments over all calls and batches."""
        merged = self.calls[0]
        for moments in self.calls[1:]:
            merged = merged.merge(moments)
        return merged


MOST_CALLS = 8  # calls of one layer in a forward that are told apart


@dataclass(frozen=True)
class View:
    """What all layers were given in a pass under each batch's own statistics.

    Attributes:
        layers: by name; layers that no batch has reached are not there.
        batches: number of batches.
        batch_size: images in a batch, on average.
    """

    layers: dict[str, LayerView]
    batches: int
    batch_size: float


def observe_batches(
    task: Task, take_output: Callable[[Any, Any], object], *, train: frozenset[str] = frozenset()
) -> View:
    """Run all batches once, with each layer normalizing by its batch, and note what layers are given.

    Args:
        task: the model, its layers and the data.
        take_output: called with each batch and the model's output.
        train: names of further modules that are in train mode meanwhile, such as dropout.

    Returns:
        What the layers saw. The model comes back as it was.
    """
    layers: dict[str, LayerView] = {}
    numbers: dict[str, int] = {}
    images = 0

    def note(name: str, values: Values) -> None:
        number = numbers.get(name, 0)
        numbers[name] = number + 1
        _note_call(task, layers, name, number, values.x)

    modules = dict(task.model.named_modules())
    with measured(task.model):
        for layer in task.layers.values():
            layer.training = True
        for name in train:
            modules[name].training = True
        with watched(task, task.layers, note):
            for batch in task.data:
                numbers.clear()
                images += count_images(batch)
                output = task.evaluate(batch)
                take_output(batch, output)
    for view in layers.values():
        _fetch(view)
    return View(layers, len(task.data), images / len(task.data))


def _note_call(task: Task, layers: dict[str, LayerView], name: str, number: int, x: Tensor) -> None:
    """Add one call of a layer: the batch's moments, and the means of its images; without waiting for the device."""
    pooled = task.reader.measure(x)
    moments = Moments(pooled.count, pooled.mean, pooled.var)
    device = moments.mean.device
    view = layers.get(name)
    if view is None:
        channels = x.shape[1]
        view = layers[name] = LayerView(Scatter.empty(channels, device), Scatter.empty(channels, device))

    view.values = int(moments.count)
    view.batch_means.add(moments.mean[None])
    by_image = x.detach().flatten(2).mean(2) if x.dim() > 2 else x.detach()
    view.image_means.add(by_image.to(device, torch.float64))
    if number < len(view.calls):
        view.calls[number] = view.calls[number].merge(moments)
    elif number < MOST_CALLS:
        view.calls.append(moments)


def _fetch(view: LayerView) -> None:
    """Bring what a layer saw to the CPU."""
    for scatter in (view.batch_means, view.image_means):
        scatter.mean = scatter.mean.cpu()
        scatter.squares = scatter.squares.cpu()
    view.calls = [Moments(call.count, call.mean.cpu(), call.var.cpu()) for call in view.calls]
