"""Run a few images again in eval mode: predictions should be the same twice, and whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnlab.doctor.thresholds import OUTPUTS_ROUNDED, PREDICTIONS_DIFFER
from bnlab.exact.task import Task
from bnlab.model.batches import count_images, list_tensors, map_batch, take_images
from bnlab.model.borrow import measured
from bnlab.model.layers import BatchNorm, get_bias, get_running_buffers, get_weight

_IMAGES = 16
_FEW = 8  # images that layers are called on again
_ALONE = 4  # images that are run alone


def probe_predictions(task: Task) -> tuple[float, float]:
    """Run at most 16 images twice, and some of them alone: how predictions differ, see `Case.twice` and `alone`."""
    batch = take_images(task.data[0], _IMAGES)
    model = task.model
    with measured(model):
        output = _find_output(task.evaluate(batch))
        before = [buffer.clone() for buffer in model.buffers()]  # after a first forward, which may fill caches
        twice = _measure_difference(output, _find_output(task.evaluate(batch)))
        after = list(model.buffers())
        are_unchanged = len(after) == len(before) and all(map(torch.equal, after, before))
        if twice != 0 and not are_unchanged:  # as by observers of quantization
            return math.nan, math.nan
        if not twice <= PREDICTIONS_DIFFER:
            return twice, math.nan
        try:
            return twice, _compare_alone(task.evaluate, batch)
        except Exception:  # a model that takes no single images may raise anything
            return twice, math.nan


def _compare_alone(run: Callable[[Any], Any], batch: Any) -> float:
    """Measure how predictions of images alone differ from those of the same images in a batch."""
    images = count_images(batch)
    if images < 2 or count_images(take_images(batch, 1)) != 1:
        return math.nan
    together = _find_output(run(batch))
    if together is None or together.dim() == 0 or len(together) != images:
        return math.nan

    outputs: list[Any] = []
    for number in range(min(images, _ALONE)):
        image = _pick(batch, number)
        outputs.append(_find_output(run(image)))
    return _measure_difference(torch.cat(outputs), together[: len(outputs)])


def _pick(batch: Any, number: int) -> Any:
    """Pick an image of a batch, as a batch of one."""

    def cut(leaf: Any) -> Any:
        return leaf[number : number + 1] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return map_batch(cut, batch)


def _find_output(output: Any) -> Tensor | None:
    """Find the first tensor of numbers in an output, as float64; None without."""
    numbers = (tensor for tensor in list_tensors(output) if tensor.is_floating_point())
    first = next(numbers, None)
    return None if first is None else first.detach().double()


def _measure_difference(output: Tensor | None, other: Tensor | None) -> float:
    """Measure how far two outputs of the same images differ; NaN where they cannot be compared."""
    if output is None or other is None or output.shape != other.shape:
        return math.nan
    difference = (output - other).square().mean().sqrt()
    spread = other.std(correction=0)
    size = OUTPUTS_ROUNDED * other.square().mean().sqrt()
    scale = torch.hypot(spread, size)
    least = torch.finfo(torch.float64).tiny
    return float(difference / scale.clamp(min=least))


def compare_in_own_mode(task: Task) -> float:
    """Measure how predictions of half of 16 images differ from those of the same images among all 16.

    Batch norms are in the mode in which the caller left them, and all else in eval mode, so that dropout draws nothing.

    Returns:
        In units of the outputs' spread, see `Case.by_batch`; NaN where none is in train mode, or there are too few
        images.
    """
    training = [layer for layer in task.layers.values() if layer.training]
    batch = take_images(task.data[0], _IMAGES)
    images = count_images(batch)
    half = take_images(batch, images // 2)
    if not training or images < 4 or count_images(half) == images:
        return math.nan
    with measured(task.model):
        for layer in training:
            layer.training = True
        try:
            together = _find_output(task.evaluate(batch))
            apart = _find_output(task.evaluate(half))
        except Exception:  # a model that takes no other number of images may raise anything
            return math.nan
    if together is None or together.dim() == 0 or len(together) != images:
        return math.nan
    return _measure_difference(apart, together[: images // 2])


def find_unread(task: Task) -> dict[str, frozenset[str]]:
    """Find which of its mean, variance, weight and bias a layer's forward in eval mode does not read.

    One forward of eight images: each layer is called again on its input with one of them changed.
    """
    unread: dict[str, frozenset[str]] = {}

    def look(name: str, layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        if name in unread or not isinstance(output, Tensor):
            return
        if output.isfinite().all():
            parts = _list_unread(layer, args, kwargs, output)
            unread[name] = frozenset(parts)

    batch = take_images(task.data[0], _FEW)
    with measured(task.model), ExitStack() as stack:
        for name, layer in task.layers.items():
            handle = layer.register_forward_hook(partial(look, name), with_kwargs=True)
            stack.callback(handle.remove)
        task.evaluate(batch)
    return {name: parts for name, parts in unread.items() if parts}


def _list_unread(layer: BatchNorm, args: Any, kwargs: Any, output: Tensor) -> Iterator[str]:
    mean, var = get_running_buffers(layer)
    parts = {"the mean": mean, "the variance": var, "the weight": get_weight(layer), "the bias": get_bias(layer)}
    for words, values in parts.items():
        if values is None:
            continue
        before = values.detach().clone()
        values.data.copy_(2 * before + 1)
        changed = layer.forward(*args, **kwargs)
        values.data.copy_(before)
        if torch.equal(changed.nan_to_num(), output.nan_to_num()):
            yield words
