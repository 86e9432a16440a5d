"""What is measured, how a batch is evaluated, and what its layers are given meanwhile."""

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
from bnlab.exact.inputs import Inputs, Values
from bnlab.exact.ranks import Ranks
from bnlab.exact.readers import Reader
from bnlab.layers import BatchNorm, get_running_buffers
from bnlab.moments import Moments
from bnlab.reading import Pooled

CALLER = "population_statistics"
Layers = Mapping[str, BatchNorm]


@dataclass
class _Foreign:
    """A buffer of the caller's that stands in a layer's place for a while.

    Attributes:
        tensor: as long as the caller keeps it.
        moment: "mean" or "var"; "" of the number of batches, which is counted in train mode.
        value: what it held.
    """

    tensor: weakref.ref[Tensor]
    moment: str
    value: Tensor


class Buffers:
    """Where statistics are written: a layer's buffers, or those that a forward has put in their place.

    `torch.func.functional_call` puts buffers of its caller's there, which are to be as they were afterwards.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._own: dict[str, tuple[Tensor, Tensor]] = {}
        self._former: dict[str, tuple[Tensor, Tensor]] = {}
        self._weights: dict[str, Tensor] = {}
        self._numbers: dict[str, Any] = {}
        self._foreign: dict[str, list[_Foreign]] = {}
        for name, layer in layers.items():
            mean, var = get_running_buffers(layer)
            self._own[name] = (mean, var)
            self._former[name] = (mean.detach().clone(), var.detach().clone())
            if isinstance(layer.weight, nn.Parameter):  # a pruned or parametrized one is computed in every call
                self._weights[name] = layer.weight
            self._numbers[name] = getattr(layer, "num_batches_tracked", None)

    def read_former(self, name: str) -> Pooled:
        """What a layer's buffers held before anything was measured, with a count that `check_moments` takes."""
        mean, var = self._former[name]
        return Pooled(2, mean.cpu().double(), var.cpu().double())

    def are_own(self, name: str) -> bool:
        """Whether a layer has its own buffers and weight now."""
        layer = self._layers[name]
        mean, var = get_running_buffers(layer)
        own_mean, own_var = self._own[name]
        weight = self._weights.get(name)
        return mean is own_mean and var is own_var and (weight is None or layer.weight is weight)

    def note(self, name: str) -> None:
        """See, in a call of a layer, whether its buffers are others than its own."""
        if self.are_own(name):
            return
        mean, var = get_running_buffers(self._layers[name])
        own_mean, own_var = self._own[name]
        if mean is not own_mean:
            self._note_foreign(name, mean, "mean")
        if var is not own_var:
            self._note_foreign(name, var, "var")
        number = getattr(self._layers[name], "num_batches_tracked", None)
        if isinstance(number, Tensor) and number is not self._numbers[name]:
            self._note_foreign(name, number, "")

    def _note_foreign(self, name: str, buffer: Tensor, moment: str) -> None:
        alive = [foreign for foreign in self._foreign.get(name, []) if foreign.tensor() is not None]
        if not any(foreign.tensor() is buffer for foreign in alive):
            alive.append(_Foreign(weakref.ref(buffer), moment, buffer.clone()))
        self._foreign[name] = alive

    def write(self, name: str, moments: Moments | Pooled) -> None:
        """Write a layer's mean and variance, as they are, wherever its forward reads them."""
        mean, var = self._own[name]
        mean.data.copy_(moments.mean)  # .data: a backward pass still to come may have saved the buffer
        var.data.copy_(moments.var)
        for foreign in self._foreign.get(name, []):
            buffer = foreign.tensor()
            if buffer is not None and foreign.moment:
                buffer.data.copy_(getattr(moments, foreign.moment))

    def close(self) -> None:
        """Give the caller's buffers their values back; the model's own are not this one's business."""
        for known in self._foreign.values():
            for foreign in known:
                buffer = foreign.tensor()
                if buffer is not None:
                    buffer.data.copy_(foreign.value)


@dataclass
class Task:
    """What is measured, and how a batch is evaluated.

    Attributes:
        model: without wrappers for several devices.
        layers: those that are measured, by name.
        forward: called with the model and a copy of a batch.
        device: where batches are copied to.
        data: the batches that have been read, in their order.
        ranks: the processes that measure together.
        inputs: what the layers normalize.
        reader: how their moments are read.
        few: how many of a batch's images stand for it where it is profiled and checked.
        channels_last: whether images are laid out with the channels innermost, in which the CPU computes faster.
        buffers: where statistics are written.
        low: of layers that were given float16, their names.
    """

    model: nn.Module
    layers: Layers
    forward: Forward
    device: torch.device
    data: list[Any]
    ranks: Ranks
    inputs: Inputs
    reader: Reader
    few: int = sys.maxsize
    channels_last: bool = False
    low: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.buffers = Buffers(self.layers)

    def run(self, index: int) -> Any:
        """The forward of the batch with this number."""
        return self.evaluate(self.data[index])

    def run_all(self) -> None:
        for index in range(len(self.data)):
            self.run(index)

    def evaluate(self, batch: Any) -> Any:
        return self.forward(self.model, copy_batch(batch, self.device, self.channels_last))

    def complete(self, name: str, pooled: Pooled) -> Pooled:
        """The moments of all channels of a layer: those that were not measured keep what its buffers held."""
        channels = self.inputs.channels.get(name)
        if channels is None:
            return pooled
        former = self.buffers.read_former(name)
        there = channels.to(pooled.mean.device)
        mean = former.mean.to(pooled.mean).index_copy(0, there, pooled.mean)
        var = former.var.to(pooled.var).index_copy(0, there, pooled.var)
        return Pooled(pooled.count, mean, var)

    def share_channels(self) -> None:
        """Let all ranks know which channels layers are given; ValueError where they differ."""
        for channels in self.ranks.gather(self.inputs.channels):
            for name, chosen in channels.items():
                self.inputs.set_channels(name, chosen)

    def check_moments(self, name: str, moments: Moments | Pooled) -> None:
        """ValueError unless a layer can normalize with `moments`, of all of its channels."""
        if moments.count < 2:
            raise ValueError(
                f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images"
            )
        mean = self.inputs.select_channels(name, moments.mean)
        var = self.inputs.select_channels(name, moments.var)
        if not (mean + var).isfinite().all():
            advice = "look at data and weights"
            if name in self.low:
                advice = "float16 overflows beyond 65,504: use bfloat16 or float32"
            raise ValueError(f"{CALLER}: the input of layer {name!r} has NaN or infinite values; {advice}")
        dtype = get_running_buffers(self.layers[name])[1].dtype
        if var.max() > torch.finfo(dtype).max:
            raise ValueError(
                f"{CALLER}: the variance of layer {name!r} is beyond {dtype}; scale the data, or use float64"
            )


@contextlib.contextmanager
def watched(task: Task, layers: Layers, look: Callable[[str, Values], object]) -> Iterator[None]:
    """In the block `look` is called with a layer's name and what it normalizes, before its forward.

    Layers that get no rows in a batch, as those of a rare kind of node, are left out of it.
    """

    def hook(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = task.inputs.select(name, layers[name], args, kwargs)
        if values is None:  # a layer that gets no rows in this batch, as of a rare kind of node
            return
        if values.x.dtype == torch.float16:
            task.low.add(name)
        task.buffers.note(name)
        look(name, values)

    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            undo.callback(layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True).remove)
        yield
