"""Slow, obvious float64 twins of the library, which imports nothing of it.

Every function reads straight off its definition: the whole data at once, one plain loop over batches or
channels. The tests hold the fast code to these; `test_references.py` holds these to values worked by hand.

Statistics are float64 tensors on the CPU with one entry per channel (axis 1). `var` has divisor n (ddof 0).
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Array = Tensor | np.ndarray
Pair = tuple[Tensor, Tensor]  # (mean, variance)


class Moments(NamedTuple):
    count: int  # values per channel
    mean: Tensor
    var: Tensor  # ddof 0


def float64(x: Array | float) -> Tensor:
    return torch.as_tensor(x).detach().to("cpu", torch.float64)


def moments(x: Array) -> Moments:
    """Count, mean and variance (ddof 0) of each channel, over all axes but 1."""
    channels = float64(x).transpose(0, 1).flatten(1)  # [C, n]
    mean = channels.mean(1)
    return Moments(channels.shape[1], mean, ((channels - mean[:, None]) ** 2).mean(1))


def merge(arrays: Sequence[Array]) -> Moments:
    """The moments of all arrays put together; their shapes may differ in all but the channels."""
    return moments(torch.cat([float64(x).transpose(0, 1).flatten(1) for x in arrays], dim=1).T)


def unbiased(batch: Array) -> Pair:
    """Mean and unbiased variance (ddof 1) of one batch: what torch's BatchNorm records."""
    count, mean, var = moments(batch)
    return mean, var * count / (count - 1)


def running_ema(
    batches: Sequence[Array], momentum: float, start_mean: Array | float = 0.0, start_var: Array | float = 1.0
) -> list[Pair]:
    """torch's running statistics after each batch: new = (1-momentum)*old + momentum*batch."""
    history = []
    mean, var = float64(start_mean), float64(start_var)
    for batch in batches:
        batch_mean, batch_var = unbiased(batch)
        mean = (1 - momentum) * mean + momentum * batch_mean
        var = (1 - momentum) * var + momentum * batch_var
        history.append((mean, var))
    return history


def running_ema_debiased(
    batches: Sequence[Array], momentum: float, start_mean: Array | float = 0.0, start_var: Array | float = 1.0
) -> list[Pair]:
    """`running_ema` with its start divided out: (E - (1-m)^t*start) / (1 - (1-m)^t)."""
    history = []
    for t, (mean, var) in enumerate(running_ema(batches, momentum, start_mean, start_var), start=1):
        residue = (1 - momentum) ** t
        mean = (mean - residue * float64(start_mean)) / (1 - residue)
        var = (var - residue * float64(start_var)) / (1 - residue)
        history.append((mean, var))
    return history


def running_cumulative(batches: Sequence[Array]) -> list[Pair]:
    """Plain averages of the batch means and unbiased variances so far: torch's `momentum=None`."""
    history = []
    for t in range(1, len(batches) + 1):
        means, variances = zip(*(unbiased(batch) for batch in batches[:t]), strict=True)
        history.append((sum(means) / t, sum(variances) / t))
    return history


def running_last_batch(batches: Sequence[Array]) -> list[Pair]:
    """Each batch's own mean and unbiased variance: momentum 1."""
    return [unbiased(batch) for batch in batches]


def full_batch_population(model: nn.Module, x: Tensor) -> dict[str, Moments]:
    """The statistics every BN layer sees in the inference network on all of `x` (`upstream="population"`).

    Layer after layer, in the order of their first call: run all of `x` through a float64 copy in eval mode,
    take the moments of the layer's input, load them, go on to the next. The model is left as it was. Exact
    where such an order exists: a feed-forward network that calls each of its BN layers once.
    """
    model = float64_copy(model)
    x = as_input(x)
    results: dict[str, Moments] = {}
    for name in call_order(model, x):
        layer = model.get_submodule(name)
        results[name] = merge(inputs_of(layer, lambda: model(x)))
        layer.running_mean.copy_(results[name].mean)
        layer.running_var.copy_(results[name].var)
    return results


def batch_upstream_population(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Moments]:
    """Moments of every BN layer's input, pooled over batches that are each normalized by themselves.

    `upstream="batch"`: all BN layers of a float64 copy are in train mode; everything else is in eval mode, so
    that dropout is off. The model is left as it was.
    """
    model = float64_copy(model)
    batches = [as_input(batch) for batch in batches]
    names = call_order(model, batches[0])
    for layer in batch_norms(model).values():
        layer.train()
    results = {}
    for name in names:
        seen = []
        for batch in batches:
            seen += inputs_of(model.get_submodule(name), lambda batch=batch: model(batch))
        results[name] = merge(seen)
    return results


def gap(reference: Pair, estimate: Pair, eps: float) -> dict[str, float]:
    """Distance of one layer's estimated (mean, variance) from the reference, by a loop over channels.

    mean_gap: rms of (mean_e - mean_r)/sqrt(var_r+eps). var_gap: rms of log((var_e+eps)/(var_r+eps)).
    kl: average of KL(N(mean_r, var_r+eps) || N(mean_e, var_e+eps)), in nats.
    """
    means, logs, kls = [], [], []
    for mean_r, var_r, mean_e, var_e in zip(
        *(float64(s).tolist() for s in (*reference, *estimate)), strict=True
    ):
        v_r, v_e = var_r + eps, var_e + eps
        means.append((mean_e - mean_r) / math.sqrt(v_r))
        logs.append(math.log(v_e / v_r))
        kls.append(0.5 * (math.log(v_e / v_r) + (v_r + (mean_r - mean_e) ** 2) / v_e - 1))
    c = len(means)
    return {
        "mean_gap": math.sqrt(sum(z * z for z in means) / c),
        "var_gap": math.sqrt(sum(z * z for z in logs) / c),
        "kl": sum(kls) / c,
    }


def float64_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("cpu", torch.float64).eval()


def as_input(x: Tensor) -> Tensor:
    """Images in float64; token indices as they are."""
    return float64(x) if x.is_floating_point() else x.cpu()


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The BN layers that keep running statistics, by name."""
    return {
        n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    }


def call_order(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the BN layers in the order of their first call; those that are never called are left out."""
    calls: list[str] = []
    layers = batch_norms(model).items()
    hooks = [m.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, m in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(calls))


def inputs_of(layer: nn.Module, forward: Callable[[], object]) -> list[Tensor]:
    """What `layer` is given during `forward()`, one tensor per call, copied before anyone writes into it."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        forward()
    hook.remove()
    return seen
