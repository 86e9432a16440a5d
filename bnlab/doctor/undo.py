"""Undos: contexts in which a model predicts as if something had not been done to it, or to its images.

Each is entered in a model that is lent: what it writes into buffers is put back at the end of the loan, and what
else it changes when the stack closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.model.batches import map_batch
from bnlab.model.layers import BatchNorm, get_bias, get_running_buffers, get_weight
from bnlab.statistics.moments import Moments

Kind = Literal["averages", "images", "network", "mode", "batches"]
EXACT = "exact statistics"
EACH_BATCH = "each batch's own statistics"
RESCALED = "images as the averages describe them"  # or averages as the images are: predictions are the same

Change = Callable[[Tensor], Tensor]
Layers = Mapping[str, BatchNorm]
Apply = Callable[[nn.Module, ExitStack], object]


@dataclass(frozen=True)
class Undo:
    """What a cause would have done, undone.

    Attributes:
        words: what was done, with its numbers, in one phrase.
        layers: names of the layers that show it, in order of depth.
        degrees: numbers that undoing it was free to choose.
        apply: undoes it in a model that is lent; what buffers do not hold goes back when the stack closes.
        shared: which of the undos that several causes share it is; "" if it is one cause's own.
        explains: which share of the gap of the layers that it is about is gone with it, without looking at scores.
        name: which of its cause's undos it is, where a cause proposes several: what is proposed from one half of the
            images is judged together with what has the same name from the other.

    >>> undo = Undo("the channels are reversed", ("norm1",), 0, change_images(lambda images: images.flip(1)))
    >>> undo.degrees
    0
    """

    words: str
    layers: tuple[str, ...]
    # A float, because each batch's own statistics, which can fit anything, count as infinitely many numbers.
    degrees: float
    apply: Apply
    shared: str = ""
    explains: float = 0.0
    name: str = ""


def write_averages(layers: Layers, averages: Mapping[str, Tensor]) -> Apply:
    """Undo by other averages: running mean and variance [2, C] by the layer's name."""

    def apply(model: nn.Module, stack: ExitStack) -> None:
        for name, values in averages.items():
            mean, var = get_running_buffers(layers[name])
            mean.data.copy_(values[0])  # .data: a backward pass still to come may have saved the buffer
            var.data.copy_(values[1])

    return apply


def write_each_call(layers: Layers, calls: Mapping[str, Sequence[Moments]]) -> Apply:
    """Undo by averages of each call of a layer in a forward: of the first call, of the second, and so on."""

    def apply(model: nn.Module, stack: ExitStack) -> None:
        numbers = dict.fromkeys(calls, 0)

        def begin(module: nn.Module, args: Any) -> None:
            # Each forward begins with the first call again.
            numbers.update(dict.fromkeys(calls, 0))

        def write(name: str, layer: nn.Module, args: Any) -> None:
            # Calls beyond those that were told apart have the statistics of the last one.
            moments = calls[name][min(numbers[name], len(calls[name]) - 1)]
            numbers[name] += 1
            mean, var = get_running_buffers(layers[name])
            mean.data.copy_(moments.mean)
            var.data.copy_(moments.var)

        stack.callback(model.register_forward_pre_hook(begin).remove)
        for name in calls:
            stack.callback(layers[name].register_forward_pre_hook(partial(write, name)).remove)

    return apply


def write_weights(weights: Iterable[tuple[Tensor, Tensor]]) -> Apply:
    """Undo by other values of parameters, in pairs of a parameter and its values."""
    pairs = list(weights)

    def apply(model: nn.Module, stack: ExitStack) -> None:
        for weight, values in pairs:
            # A loan does not put back parameters that take gradients, so that it is done here.
            stack.callback(weight.data.copy_, weight.detach().clone())
            weight.data.copy_(values)

    return apply


def change_images(change: Change) -> Apply:
    """Undo by a change of the floating-point tensors of an axis or more that enter the model."""

    def change_leaf(leaf: Any) -> Any:
        # Whole numbers are classes or indices, and a tensor without axes is a setting of the whole batch.
        is_data = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0
        return change(leaf) if is_data else leaf

    def change_arguments(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return map_batch(change_leaf, args), map_batch(change_leaf, kwargs)

    def apply(model: nn.Module, stack: ExitStack) -> None:
        handle = model.register_forward_pre_hook(change_arguments, with_kwargs=True)
        stack.callback(handle.remove)

    return apply


def find_tensor(args: Any, kwargs: Any) -> Tensor | None:
    """Find the first tensor of numbers among the arguments of a call, also within a pair or a list."""
    found: list[Tensor] = []

    def take(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            found.append(leaf)
        return leaf

    map_batch(take, [args, kwargs])
    return found[0] if found else None


def replace_forwards(layers: Iterable[nn.Module], forward: Callable[[Any, Tensor], Tensor]) -> Apply:
    """Undo by another output of layers, computed from their input."""
    chosen = list(layers)
    given: dict[nn.Module, Tensor | None] = {}

    def keep(layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = find_tensor(args, kwargs)
        given[layer] = None if x is None else x.clone()  # a layer may write into its input

    def replace_output(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = given.pop(layer)
        return output if x is None else forward(layer, x)

    def apply(model: nn.Module, stack: ExitStack) -> None:
        for layer in chosen:
            before = layer.register_forward_pre_hook(keep, with_kwargs=True)
            after = layer.register_forward_hook(replace_output, with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(after.remove)

    return apply


def normalize_by_averages(layer: Any, x: Tensor) -> Tensor:
    """Normalize as batch norm does in eval mode, whatever the layer's own forward does."""
    mean, var = get_running_buffers(layer)
    return F.batch_norm(x, mean, var, get_weight(layer), get_bias(layer), False, 0.0, layer.eps)


def pass_through(layer: Any, x: Tensor) -> Tensor:
    """Leave a layer out."""
    return x


def normalize_each_batch(layers: Layers) -> Apply:
    """Undo by normalizing with each batch's own statistics, where a batch has more than one value in a channel."""

    def choose_mode(layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = find_tensor(args, kwargs)
        # The mode is chosen before each call, because evaluate= may call `model.eval()`. A single value in
        # each channel has no variance, and torch refuses it in train mode.
        layer.training = x is None or x.dim() < 2 or x.numel() > x.shape[1]

    def apply(model: nn.Module, stack: ExitStack) -> None:
        for layer in layers.values():
            if layer.eps == 0:  # torch refuses it in train mode
                stack.callback(setattr, layer, "eps", 0.0)
                layer.eps = torch.finfo(torch.float32).tiny
            handle = layer.register_forward_pre_hook(choose_mode, with_kwargs=True)
            stack.callback(handle.remove)

    return apply
