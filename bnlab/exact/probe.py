"""What does a layer's own averaging take? Two calls in train mode, from two starts, tell it, whatever the layer does.

An average is new = (1 − m)·old + m·s, with s the statistic of the batch. From two starts a and b, new_a − new_b =
(1 − m)(a − b) gives m, and then s. Where s is the mean and variance of the layer's input, the layer normalizes its
input. Where it is not (masks, weights, a filter before), the moments of its input are the wrong ones.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import map_batch
from bnlab.borrow import borrowed
from bnlab.layers import BatchNorm, find_replaced_forward, get_input, get_running_buffers

_STARTS = ((0.0, 1.0), (1.0, 2.0))  # of mean and variance, in units of the input's size, so that no digits are lost
_ROUNDING = 64  # how many roundings of float32 a layer may make
_NOTHING = 1e-9  # a momentum that is none


@dataclass(frozen=True)
class Probed:
    """What a layer's averaging takes of one call.

    Attributes:
        averages: whether it averages at all; if not, nothing can be told.
        is_input: whether it takes its input's mean and variance, with either divisor, up to rounding.
        off: how far what it takes is from these: of the mean in σ or of the variance, relative.
    """

    averages: bool
    is_input: bool
    off: float


def probe(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Probed | None:
    """Ask a layer what it averages of this call; None if it cannot be asked.

    The layer and its arguments are copied, in float64, and random numbers are drawn again in the second call.
    """
    try:
        x = get_input(args, kwargs).detach().double().cpu()
        size = float(x.square().mean().sqrt())
        if not math.isfinite(size):  # which is said where its moments are checked
            return None
        size = size or 1.0
        ends = [_average(layer, args, kwargs, mean * size, var * size**2) for mean, var in _STARTS]
    except Exception:  # of a layer that cannot be copied, or does not take what it would not be given in training
        return None

    (mean_a, var_a), (mean_b, var_b) = ends
    momentum = 1 - (mean_b - mean_a) / size
    momentum_of_var = 1 - (var_b - var_a) / size**2
    least = float(torch.minimum(momentum.abs(), momentum_of_var.abs()).min())
    if float(momentum.abs().max()) < _NOTHING:
        return Probed(False, False, 0.0)
    if least < _NOTHING or x.dim() < 2 or x.shape[1] != len(momentum):  # some channels only
        return Probed(True, False, math.inf)

    taken_mean = mean_a / momentum
    taken_var = (var_a - (1 - momentum_of_var) * size**2) / momentum_of_var
    dims = [dim for dim in range(x.dim()) if dim != 1]
    mean = x.mean(dims)
    biased = x.var(dims, correction=0).clamp(min=torch.finfo(torch.float32).tiny)
    count = x.numel() // x.shape[1]
    unbiased = biased * count / max(1, count - 1)
    deviation = biased.sqrt()
    off_mean = (taken_mean - mean).abs() / deviation
    off_var = torch.minimum((taken_var - biased).abs(), (taken_var - unbiased).abs()) / biased

    # A layer may compute in float32: its averages are rounded, and what it takes is that over the momentum.
    rounding = _ROUNDING * torch.finfo(torch.float32).eps / least
    size_of_mean = (size + mean.abs() + deviation) / deviation
    size_of_var = (size**2 + mean.square() + biased) / biased
    is_input = (off_mean <= rounding * size_of_mean) & (off_var <= rounding * size_of_var)
    return Probed(True, bool(is_input.all()), float(torch.maximum(off_mean, off_var).max()))


def _average(
    layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], mean: float, var: float
) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a copy after one call in train mode from this start; float64 on the CPU."""
    if find_replaced_forward(layer) is None:
        trial = copy.deepcopy(layer).double()
        return _train_once(trial, map_batch(_widen, args), map_batch(_widen, kwargs), mean, var)
    with borrowed(layer):  # its forward may be bound to this very layer, so that a copy's would do nothing to the copy
        return _train_once(layer, map_batch(_copy, args), map_batch(_copy, kwargs), mean, var)


def _train_once(
    layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], mean: float, var: float
) -> tuple[Tensor, Tensor]:
    """Call a layer in train mode from this start; what it averages then, float64 on the CPU."""
    layer.train()
    running = get_running_buffers(layer)
    running[0].fill_(mean)
    running[1].fill_(var)
    devices = {buffer.device for buffer in running if buffer.is_cuda}
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        layer.forward(*args, **kwargs)  # past the hooks, which would measure it
    averaged_mean, averaged_var = (buffer.detach().double().cpu() for buffer in get_running_buffers(layer))
    return averaged_mean.clone(), averaged_var.clone()


def _widen(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.detach().double()
    return _copy(leaf)


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
