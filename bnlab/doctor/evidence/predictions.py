"""Run a few images again in eval mode: predictions should be the same twice, and whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.common.precision import widen
from bnlab.doctor.evidence.looking import LayerCall, run_and_inspect
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
        try:
            output = _find_output(task.evaluate(batch))
        except Exception:  # a model that takes batches of one size may raise anything
            return math.nan, math.nan
        before = [buffer.clone() for buffer in model.buffers()]  # after a first forward, which may fill caches
        twice = _measure_difference(output, _find_output(task.evaluate(batch)))
        after = list(model.buffers())
        are_unchanged = len(after) == len(before) and all(map(torch.equal, after, before))
        if twice != 0 and not are_unchanged:  # as by observers of quantization
            return math.nan, math.nan
        # If two runs of the same batch differ, images that are run alone differ for that reason as well.
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
    return None if first is None else widen(first.detach())


def _measure_difference(output: Tensor | None, other: Tensor | None) -> float:
    """Measure how far two outputs of the same images differ; NaN where they cannot be compared."""
    if output is None or other is None or output.shape != other.shape:
        return math.nan
    difference = (output - other).square().mean().sqrt()
    spread = other.std(correction=0)
    size = OUTPUTS_ROUNDED * other.square().mean().sqrt()
    # A spread that is hardly more than rounding is no scale by itself.
    scale = torch.hypot(spread, size)
    # Outputs that are all 0 have no scale to divide by.
    least = torch.finfo(torch.float64).tiny
    return float(difference / scale.clamp(min=least))


def compare_in_callers_mode(task: Task) -> float:
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
    # A half has at least two images, because a single one may have no variance in train mode.
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

    def inspect(name: str, layer: Any, given: LayerCall, output: Any) -> None:
        if name not in unread and isinstance(output, Tensor) and output.isfinite().all():
            unread[name] = frozenset(_list_unread(layer, given, output))

    run_and_inspect(task, task.layers, _FEW, inspect)
    return {name: parts for name, parts in unread.items() if parts}


def _list_unread(layer: BatchNorm, given: LayerCall, output: Tensor) -> Iterator[str]:
    mean, var = get_running_buffers(layer)
    weight = get_weight(layer)
    bias = get_bias(layer)
    if not mean.isfinite().all() or not var.isfinite().all():
        return  # changed, they are as bad as before

    with ExitStack() as stack:
        expected = output
        # Under weights of 0, as at the end of residual branches, no output depends on the averages. Nor does one under
        # weights so small that the bias leaves no digits of what they multiply.
        if isinstance(weight, nn.Parameter) and _is_lost(weight, bias, output.dtype):
            stack.enter_context(_holding(weight, torch.ones_like(weight)))
            try:
                expected = given.call(layer)
            except Exception:  # the forward of another class may raise anything
                return
        for words, values in (("the mean", mean), ("the variance", var)):
            if not _reads(layer, given, values, expected):
                yield words
    # Under the layer's weights again: weights of 1 served the averages alone.
    for words, parameter in (("the weight", weight), ("the bias", bias)):
        # What a parametrization computes at each call cannot be changed here.
        if isinstance(parameter, nn.Parameter) and not _reads(layer, given, parameter, output):
            yield words


def _is_lost(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """Return whether all weights are 0, or rounded away beside their biases in outputs of this type."""
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    lost = torch.zeros_like(weight) if bias is None else eps * bias.abs()
    return bool((weight.abs() <= lost).all())


def _reads(layer: BatchNorm, given: LayerCall, values: Tensor, output: Tensor) -> bool:
    """Return whether a layer's output changes with these values; True if it cannot be computed with others."""
    # This changes zeros, too, and leaves variances positive.
    with _holding(values, 2 * values.detach() + 1):
        try:
            changed = given.call(layer)
        except Exception:  # the forward of another class may raise anything
            return True
    return not torch.equal(changed.nan_to_num(), output.nan_to_num())


@contextmanager
def _holding(tensor: Tensor, values: Tensor) -> Iterator[None]:
    """A tensor holds other values in the block."""
    before = tensor.detach().clone()
    tensor.data.copy_(values)
    try:
        yield
    finally:
        tensor.data.copy_(before)
