"""Ask a layer what it averages: two calls in train mode, from two starts, show it, whatever the layer does inside.

An average is new = (1 − m)·old + m·s, with s the statistic of the batch. From two starts a and b, new_a − new_b =
(1 − m)(a − b) gives m, and then s. If s is the mean and variance of the layer's input, the layer normalizes its input.
If not (masks, weights, a filter before), the moments of its input are not those that it needs, and `inputs=` has to
give the values: then their mean is compared with s. Of their variance s may have any less, since a layer may take it in
groups, whose means differ; but no more than twice as much, which is the most that the divisor of a group of two adds.

A ghost batch norm calls torch's routine on parts of its input in turn, so that what it averages is of the last parts
rather than of all. It normalizes its input if these parts, pooled, have the moments of the input.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnlab.exact.task import CALLER, Task
from bnlab.model.batches import map_batch, take_images
from bnlab.model.borrow import borrowed
from bnlab.model.layers import (
    BatchNorm,
    InputMismatch,
    find_replaced_forward,
    get_batch_count,
    get_input,
    get_momentum,
    get_running_buffers,
    join_names,
)
from bnlab.model.warn import warn
from bnlab.statistics.moments import Moments

_STARTS = ((0.0, 1.0), (1.0, 2.0))  # mean and variance, in units of the input's size, so that no digits are lost
_ROUNDING = 64  # how many roundings of float32 a layer may make
_MOMENTUM = 0.1  # of the copies that are called: what is averaged is read off the better the larger it is
_NOTHING = 1e-9  # a momentum below this is rounding: the layer does not average


class ProbeOutcome(enum.Enum):
    """What a layer averages, as probing it has shown."""

    INPUT = "it averages the moments of its input, or of the values that it was compared with"
    OTHER_MOMENTS = "it averages other moments"
    OTHER_CHANNELS = "it averages other channels"
    UNKNOWN = "it averages nothing, or cannot be asked"


@dataclass(frozen=True)
class ProbeResult:
    """Result for a layer that was probed.

    Attributes:
        outcome: what it averages.
        off: for other moments, the largest difference: of a mean in σ, of a variance relative; else NaN.
    """

    outcome: ProbeOutcome
    off: float = math.nan


def require_inputs_normalized(task: Task, layers: Mapping[str, BatchNorm], batches: Sequence[Any]) -> list[str]:
    """Require that layers with a forward of their own normalize their input, or else what `inputs=` gives.

    Each is asked in its first call, in a few images and in whole batches. With `inputs=` a layer may also average all
    of its input, padding too, say, which is not normalized: a doctor will say so.

    Returns:
        Norms of other classes than torch's that do not average the moments of their input: whether they are batch norms
        at all is not known.

    Raises:
        ValueError: a batch norm of torch's averages something other than its input, or a layer something other than
            what `inputs=` gives.

    Warns:
        RuntimeWarning: layers that cannot be asked, and those that are returned.
    """
    few_images = take_images(batches[0], task.sample_size)
    unclear_by_few, others = _ask(task, layers, few_images)
    # A few images may be too few to train on: a mask can leave out all of their rows.
    asked_again = {name: layers[name] for name in unclear_by_few}
    unclear, others_by_batch = _ask(task, asked_again, batches[0])
    others += others_by_batch
    # A mask leaves nothing out of a few images that happen to fill it, such as the longest ones of a sorted batch.
    for batch in batches:
        clear = {name: layer for name, layer in layers.items() if name not in (*unclear, *others)}
        _, others_by_batch = _ask(task, clear, batch)
        others += others_by_batch

    trusted = []
    for name in unclear:
        # Where inputs= says what a layer normalizes, there is nothing to warn about.
        if name in task.inputs.extracts:
            continue
        if isinstance(layers[name], BatchNorm):
            trusted.append(name)
        else:
            others.append(name)
    if trusted:
        warn(
            f"{CALLER}: {join_names(trusted)} never average in train mode, or cannot be called in it; they are "
            "measured as if they normalized their input"
        )
    if others:
        warn(
            f"{CALLER}: {join_names(others)} are not of torch's batch norms and do not average the moments of their "
            "input in train mode; they are not measured, unless inputs= says what they normalize"
        )
    return others


def _ask(task: Task, layers: Mapping[str, BatchNorm], batch: Any) -> tuple[list[str], list[str]]:
    """Ask layers in an ordinary evaluation of a batch.

    Returns:
        Those that cannot be asked; norms of other classes than torch's that average something other than their input.
    """
    unclear: list[str] = []
    others: list[str] = []
    asked = set[str]()
    if not layers:  # there is nothing to run a forward for
        return unclear, others

    def ask(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in asked:
            return
        asked.add(name)
        result = probe(layers[name], args, kwargs)
        # No matter what inputs= gives: in train mode a layer may average all of its input, padding included.
        if result.outcome is ProbeOutcome.INPUT:
            return
        if name in task.inputs.extracts:
            result = _ask_about_values(task, name, layers[name], args, kwargs)
            if result.outcome is ProbeOutcome.UNKNOWN:
                unclear.append(name)
        elif result.outcome is ProbeOutcome.UNKNOWN:
            unclear.append(name)
        elif isinstance(layers[name], BatchNorm):
            raise _refuse_other_input(name, layers[name], result)
        else:
            others.append(name)

    with borrowed(task.root), contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            undo.callback(layer.register_forward_pre_hook(partial(ask, name), with_kwargs=True).remove)
        task.evaluate(batch)
    return unclear, others


def _ask_about_values(
    task: Task, name: str, layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ProbeResult:
    """Ask a layer whether it averages the moments of what `inputs=` gives; ValueError if it averages others."""
    values = task.inputs.select(name, layer, args, kwargs)
    if values is None:
        return ProbeResult(ProbeOutcome.UNKNOWN)
    result = probe(layer, args, kwargs, values)
    # A difference that is not finite, as of a layer that overflows, says nothing about the values.
    if result.outcome is ProbeOutcome.OTHER_MOMENTS and math.isfinite(result.off):
        raise _refuse_values(name, layer, result.off)
    return result


def _refuse_other_input(name: str, layer: BatchNorm, result: ProbeResult) -> InputMismatch:
    """Describe what a layer averages in place of its input, and how `inputs=` says what that is."""
    kind = type(layer).__name__
    if result.outcome is ProbeOutcome.OTHER_CHANNELS:
        difference = "averages other channels than those of its input"
    else:
        difference = f"does not average the moments of its input (they differ by {result.off:.2g} σ)"

    key = kind
    if find_replaced_forward(layer) is not None:  # set on this layer, not by its class
        key = repr(name)
    return InputMismatch(CALLER, f"layer {name!r} ({kind}) {difference}", key)


def _refuse_values(name: str, layer: BatchNorm, off: float) -> ValueError:
    return ValueError(
        f"{CALLER}: inputs= gives layer {name!r} ({type(layer).__name__}) values with another mean or variance than it "
        f"averages in train mode (they differ by {off:.2g} σ or of the variance); return the values that it "
        "normalizes"
    )


def probe(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], values: Tensor | None = None) -> ProbeResult:
    """Compare what a layer averages in this call with the mean and variance of its input.

    They are the same if they differ by rounding, with either divisor of the variance. With `values` [N, C, ...] they
    are compared with the mean and variance of these, for variances up to twice as large.

    Copies of the layer are called, in float64, and with the same random numbers. A layer on which somebody has set a
    forward is called itself, and restored.
    """
    try:
        given = get_input(args, kwargs) if values is None else values
        x = given.detach().cpu().double()  # in this order: MPS has no float64
        size = float(x.square().mean().sqrt())
        if not math.isfinite(size):  # the layer is not to blame: `require_usable` says that the input is not finite
            return ProbeResult(ProbeOutcome.UNKNOWN)
        # An input of zeros has no size; any unit will do for it.
        if size == 0:
            size = 1.0
        a, b = [_average(layer, args, kwargs, mean * size, var * size**2) for mean, var in _STARTS]
    except Exception:  # the layer cannot be copied, or not be called in train mode with what it is given in eval mode
        return ProbeResult(ProbeOutcome.UNKNOWN)

    # The two starts are 1 apart in units of the input, and a share of 1 − m is left of their distance.
    momentum = 1 - (b.mean - a.mean) / size
    momentum_of_var = 1 - (b.var - a.var) / size**2
    if float(momentum.abs().max()) < _NOTHING:
        return ProbeResult(ProbeOutcome.UNKNOWN)
    smallest_momentum = float(torch.minimum(momentum.abs(), momentum_of_var.abs()).min())
    if smallest_momentum < _NOTHING or x.dim() < 2 or x.shape[1] != len(momentum):  # only some channels are averaged
        return ProbeResult(ProbeOutcome.OTHER_CHANNELS)

    # The first start has mean 0 and variance `size**2`. A share of 1 − m of both is left in the averages.
    averaged_mean = a.mean / momentum
    averaged_var = (a.var - (1 - momentum_of_var) * size**2) / momentum_of_var
    # A layer may compute in float32, and its buffers may be rounded to less. What it averages was divided by the
    # momentum, which magnifies both.
    eps = max(a.eps, b.eps)
    rounding = (_ROUNDING * torch.finfo(torch.float32).eps + eps) / smallest_momentum
    is_half = given.is_floating_point() and given.itemsize < 4
    if is_half and given.device.type == "cpu" and eps > torch.finfo(torch.float64).eps:
        # There torch adds up one value of half precision after the other, and each addition rounds.
        rounding += x.numel() / x.shape[1] * torch.finfo(torch.float32).eps / 2
    off = _compare_with_input(x, size, averaged_mean, averaged_var, rounding, values is not None)

    # A ghost batch norm has averaged its last parts rather than all, so that its parts are pooled instead.
    if off > 0 and len(a.parts) > 1 and all(len(part.mean) == x.shape[1] for part in a.parts):
        pooled = reduce(Moments.merge, a.parts)
        # Pooled moments were not divided by a momentum, so that their rounding is not magnified.
        rounding = _ROUNDING * torch.finfo(torch.float32).eps
        off = min(off, _compare_with_input(x, size, pooled.mean, pooled.var, rounding))
    return ProbeResult(ProbeOutcome.INPUT) if off == 0 else ProbeResult(ProbeOutcome.OTHER_MOMENTS, off)


def _compare_with_input(
    x: Tensor, size: float, averaged_mean: Tensor, averaged_var: Tensor, rounding: float, in_groups: bool = False
) -> float:
    """Compute the largest difference of what a layer averages from the moments of its input; 0 if it is rounding.

    Args:
        x: the input, [N, C, ...].
        size: root mean square of the input.
        averaged_mean, averaged_var: what the layer averages, [C].
        rounding: how far the averages may be off, relative to the size of the values that they are of.
        in_groups: whether the variance may be that in groups of the input.
    """
    dims = [dim for dim in range(x.dim()) if dim != 1]
    mean = x.mean(dims)
    # Everything below is divided by the variance, which is 0 in a constant channel.
    biased = x.var(dims, correction=0).clamp(min=torch.finfo(torch.float32).tiny)
    count = x.numel() // x.shape[1]
    unbiased = biased * count / max(1, count - 1)
    deviation = biased.sqrt()

    off_mean = (averaged_mean - mean).abs() / deviation
    if in_groups:
        off_var = (averaged_var / biased - 2).clamp(min=0)
    else:
        off_var = torch.minimum((averaged_var - biased).abs(), (averaged_var - unbiased).abs()) / biased

    # Rounding is relative to the size of the values, which can be many σ if the mean is far from 0.
    size_of_mean = (size + mean.abs() + deviation) / deviation
    size_of_var = (size**2 + mean.square() + biased) / biased
    is_input = (off_mean <= rounding * size_of_mean) & (off_var <= rounding * size_of_var)
    return 0.0 if is_input.all() else float(torch.maximum(off_mean, off_var).max())


class _Average(NamedTuple):
    """What a call leaves.

    Attributes:
        mean, var: the running mean and variance after it, float64 [C] on the CPU.
        eps: the relative rounding of the buffers that held them.
        parts: the moments of what torch's routine was given.
    """

    mean: Tensor
    var: Tensor
    eps: float
    parts: list[Moments]


class _Parts(TorchFunctionMode):
    """Lists the moments of what torch's batch norm is given together with a running mean."""

    def __init__(self, running_mean: Tensor) -> None:
        super().__init__()
        self.moments: list[Moments] = []
        self._running_mean = running_mean

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is nn.functional.batch_norm and args[1] is self._running_mean:
            self.moments.append(Moments.of(args[0]))
        return function(*args, **(kwargs or {}))


def _average(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], mean: float, var: float) -> _Average:
    """Call a layer once in train mode from a running mean and variance."""
    if find_replaced_forward(layer) is None:
        try:
            trial = _copy_layer(layer).double()
            return _train_once(trial, map_batch(_widen, args), map_batch(_widen, kwargs), mean, var)
        except Exception:  # as of a forward that turns its input into float32, which torch refuses beside float64
            return _train_once(_copy_layer(layer), map_batch(_copy, args), map_batch(_copy, kwargs), mean, var)
    with borrowed(layer):  # the forward that was set on this layer may be bound to it: a copy's would call the original
        return _train_once(layer, map_batch(_copy, args), map_batch(_copy, kwargs), mean, var)


def _copy_layer(layer: BatchNorm) -> BatchNorm:
    """Copy a layer, with a momentum by which little is rounded."""
    copied = copy.deepcopy(layer)
    momentum = get_momentum(copied)
    # A layer with momentum=None weighs by counting, and one with 0 does not average; both are left as they are.
    if isinstance(momentum, float) and momentum > 0:
        copied.momentum = _MOMENTUM
    return copied


def _train_once(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], mean: float, var: float) -> _Average:
    layer.train()
    running_mean, running_var = get_running_buffers(layer)
    running_mean.fill_(mean)
    running_var.fill_(var)
    batch_count = get_batch_count(layer)
    if batch_count is not None:
        batch_count.zero_()  # with momentum=None the weight of a batch is 1 over their number

    # Calls from both starts draw the same random numbers, so that their averages differ by the start only.
    devices = {buffer.device for buffer in (running_mean, running_var) if buffer.is_cuda}
    with torch.random.fork_rng(devices=devices):
        # This is not torch.manual_seed, which would also reseed accelerators that are not restored here.
        torch.default_generator.manual_seed(0)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        with _Parts(running_mean) as parts:
            layer.forward(*args, **kwargs)  # not the layer itself, whose hooks ask and measure

    # Read again, because a layer may replace its buffers by new tensors instead of writing into them.
    averaged_mean, averaged_var = get_running_buffers(layer)
    eps = torch.finfo(averaged_mean.dtype).eps
    return _Average(_copy(averaged_mean).cpu().double(), _copy(averaged_var).cpu().double(), eps, parts.moments)


def _widen(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.detach().to(torch.float64, copy=True)  # some norms write into their input
    return _copy(leaf)


def _copy(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    copied = leaf.detach().clone()
    # Where channels are innermost in memory, torch's batch norm on the CPU adds up one value after the other, and a
    # large input is rounded by more than the comparison allows.
    return copied.contiguous() if copied.layout == torch.strided else copied
