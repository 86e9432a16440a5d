"""What is measured, how a batch is evaluated, and what its layers are given meanwhile."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.batches import Forward, copy_batch
from bnlab.exact.ranks import Ranks
from bnlab.layers import BatchNorm, get_input, get_running_buffers
from bnlab.moments import Moments

CALLER = "population_statistics"
Layers = Mapping[str, BatchNorm]


@dataclass
class Task:
    """What is measured, and how a batch is evaluated.

    Attributes:
        few: how many of a batch's images stand for it where it is profiled and checked.
        channels_last: whether images are laid out with the channels innermost, in which the CPU computes faster.
    """

    model: nn.Module
    layers: Layers
    forward: Forward
    device: torch.device
    data: list[Any]
    ranks: Ranks
    few: int = sys.maxsize
    channels_last: bool = False

    def run(self, index: int) -> Any:
        """The forward of the batch with this number."""
        return self.evaluate(self.data[index])

    def run_all(self) -> None:
        for index in range(len(self.data)):
            self.run(index)

    def evaluate(self, batch: Any) -> Any:
        return self.forward(self.model, copy_batch(batch, self.device, self.channels_last))


@contextlib.contextmanager
def watched(layers: Layers, look: Callable[[str, Tensor], object]) -> Iterator[None]:
    """In the block `look` is called with a layer's name and input before its forward."""

    def hook(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look(name, get_input(args, kwargs))

    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            undo.callback(layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True).remove)
        yield


def check_moments(name: str, moments: Moments, layer: BatchNorm) -> None:
    """ValueError unless a layer can normalize with `moments`."""
    if moments.count < 2:
        raise ValueError(f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images")
    if not (moments.mean + moments.var).isfinite().all():
        raise ValueError(f"{CALLER}: the input of layer {name!r} has NaN or infinite values; look at data and weights")
    dtype = get_running_buffers(layer)[1].dtype
    if moments.var.max() > torch.finfo(dtype).max:
        raise ValueError(f"{CALLER}: the variance of layer {name!r} is beyond {dtype}; scale the data, or use float64")
