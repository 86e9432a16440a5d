"""A task: what is measured, how a batch is evaluated, and which buffers its layers normalize with."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.batches import Forward, copy_batch
from bnlab.exact.ranks import Ranks
from bnlab.exact.readers import Reader, fetch
from bnlab.inputs import Inputs, Values
from bnlab.layers import BatchNorm, get_running_buffers
from bnlab.moments import Moments
from bnlab.reading import Pooled

CALLER = "population_statistics"
Layers = Mapping[str, BatchNorm]


@dataclass
class _ForeignBuffer:
    """A tensor of the caller's that has taken the place of one of a layer's buffers in a forward.

    Attributes:
        tensor: a weak reference, which is empty once the caller has let the tensor go.
        moment: "mean" or "var"; "" for `num_batches_tracked`.
        value: what the tensor held when it was seen first.
    """

    tensor: weakref.ref[Tensor]
    moment: str
    value: Tensor


class Buffers:
    """The buffers that layers normalize with: their own, and those that forwards put in their place.

    `torch.func.functional_call` calls a model with buffers of its caller's in the place of the model's own. Statistics
    are written there too, and `close` gives the caller's buffers their values back.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._own: dict[str, tuple[Tensor, Tensor]] = {}
        self._former: dict[str, tuple[Tensor, Tensor]] = {}
        self._weights: dict[str, Tensor] = {}
        self._numbers: dict[str, Any] = {}
        self._foreign: dict[str, list[_ForeignBuffer]] = {}
        for name, layer in layers.items():
            mean, var = get_running_buffers(layer)
            self._own[name] = (mean, var)
            self._former[name] = (mean.detach().clone(), var.detach().clone())
            if isinstance(layer.weight, nn.Parameter):  # a pruned or parametrized one is computed in every call
                self._weights[name] = layer.weight
            self._numbers[name] = getattr(layer, "num_batches_tracked", None)

    def read_former(self, name: str) -> Pooled:
        """Return what a layer's buffers held before anything was measured.

        They have no count: 2 stands for it, the least that has a variance.
        """
        mean, var = self._former[name]
        return Pooled(2, mean.cpu().double(), var.cpu().double())

    def are_own(self, name: str) -> bool:
        """Return whether a layer has its own buffers and weight now, and none of the caller's."""
        layer = self._layers[name]
        mean, var = get_running_buffers(layer)
        own_mean, own_var = self._own[name]
        weight = self._weights.get(name)
        return mean is own_mean and var is own_var and (weight is None or layer.weight is weight)

    def note_foreign(self, name: str) -> None:
        """Note, in a call of a layer, which of its buffers are the caller's."""
        if self.are_own(name):
            return
        mean, var = get_running_buffers(self._layers[name])
        own_mean, own_var = self._own[name]
        if mean is not own_mean:
            self._note(name, mean, "mean")
        if var is not own_var:
            self._note(name, var, "var")
        number = getattr(self._layers[name], "num_batches_tracked", None)
        if isinstance(number, Tensor) and number is not self._numbers[name]:
            self._note(name, number, "")

    def _note(self, name: str, buffer: Tensor, moment: str) -> None:
        alive = [foreign for foreign in self._foreign.get(name, []) if foreign.tensor() is not None]
        if not any(foreign.tensor() is buffer for foreign in alive):
            alive.append(_ForeignBuffer(weakref.ref(buffer), moment, buffer.clone()))
        self._foreign[name] = alive

    def write(self, name: str, moments: Moments | Pooled) -> None:
        """Write a layer's mean and variance, as they are, into its own buffers and into the caller's."""
        mean, var = self._own[name]
        mean.data.copy_(moments.mean)  # .data: a backward pass still to come may have saved the buffer
        var.data.copy_(moments.var)
        for foreign in self._foreign.get(name, []):
            buffer = foreign.tensor()
            if buffer is not None and foreign.moment:
                buffer.data.copy_(getattr(moments, foreign.moment))

    def close(self) -> None:
        """Give the caller's buffers their values back; `borrowed` does so for the model's own."""
        for buffers in self._foreign.values():
            for foreign in buffers:
                buffer = foreign.tensor()
                if buffer is not None:
                    buffer.data.copy_(foreign.value)


@dataclass
class Task:
    """A model and batches to measure, and how a batch is evaluated.

    Attributes:
        model: the model, without wrappers for several devices.
        layers: the layers that are measured, by name.
        forward: called with the model and a copy of a batch.
        device: the device that batches are copied to.
        data: the batches that have been read, in their order.
        ranks: the processes that measure together.
        inputs: says what the layers normalize.
        reader: reads the moments of what they normalize.
        sample_size: how many of a batch's images are evaluated to profile and to check a forward.
        channels_last: whether images are laid out with the channels innermost, in which the CPU computes faster.
        float16_layers: names of the layers that were given float16 values.
        buffers: the layers' buffers, where statistics are written.
    """

    model: nn.Module
    layers: Layers
    forward: Forward
    device: torch.device
    data: list[Any]
    ranks: Ranks
    inputs: Inputs
    reader: Reader
    sample_size: int = sys.maxsize
    channels_last: bool = False
    float16_layers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.buffers = Buffers(self.layers)

    def run_batch(self, index: int) -> None:
        """Run the forward of the batch with this number."""
        self.evaluate(self.data[index])

    def run_all(self) -> None:
        """Run the forward of each batch."""
        for batch in self.data:
            self.evaluate(batch)

    def evaluate(self, batch: Any) -> Any:
        """Run the forward of a copy of a batch."""
        return self.forward(self.model, copy_batch(batch, self.device, self.channels_last))

    def complete(self, name: str, pooled: Pooled) -> Pooled:
        """Add to a layer's measured channels the others, which keep what the buffers held."""
        channels = self.inputs.channels.get(name)
        if channels is None:
            return pooled
        former = self.buffers.read_former(name)
        numbers = channels.to(pooled.mean.device)
        mean = former.mean.to(pooled.mean).index_copy(0, numbers, pooled.mean)
        var = former.var.to(pooled.var).index_copy(0, numbers, pooled.var)
        return Pooled(pooled.count, mean, var)

    def share_channels(self) -> None:
        """Tell all ranks which channels the layers were given; ValueError if ranks differ in them."""
        for channels in self.ranks.gather(self.inputs.channels):
            for name, chosen in channels.items():
                self.inputs.set_channels(name, chosen)

    def fetch(self, pooled: Mapping[str, Pooled]) -> dict[str, Moments]:
        """Bring the moments of layers to the CPU; ValueError if a layer cannot normalize with its own."""
        statistics = fetch(pooled)
        for name, moments in statistics.items():
            self.require_usable(name, moments)
        return statistics

    def require_usable(self, name: str, moments: Moments | Pooled) -> None:
        """Raise ValueError unless a layer can normalize with `moments` of all of its channels."""
        if moments.count < 2:
            raise ValueError(
                f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images"
            )
        mean = self.inputs.select_channels(name, moments.mean)
        var = self.inputs.select_channels(name, moments.var)
        if not (mean + var).isfinite().all():
            advice = "look at data and weights"
            if name in self.float16_layers:
                advice = "float16 overflows beyond 65,504: use bfloat16 or float32"
            raise ValueError(f"{CALLER}: the input of layer {name!r} has NaN or infinite values; {advice}")
        dtype = get_running_buffers(self.layers[name])[1].dtype
        if var.max() > torch.finfo(dtype).max:
            raise ValueError(
                f"{CALLER}: the variance of layer {name!r} is beyond {dtype}; scale the data, or use float64"
            )


@contextlib.contextmanager
def watched(task: Task, layers: Layers, look: Callable[[str, Values], object]) -> Iterator[None]:
    """Watch layers in the block: before a layer's forward, call `look` with its name and what it normalizes.

    Calls without rows, as of a layer for a kind of node that a batch has none of, are passed over.
    """

    def hook(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = task.inputs.select(name, layers[name], args, kwargs)
        if values is None:
            return
        if values.x.dtype == torch.float16:
            task.float16_layers.add(name)
        task.buffers.note_foreign(name)
        look(name, values)

    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            undo.callback(layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True).remove)
        yield
