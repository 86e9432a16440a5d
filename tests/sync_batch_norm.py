"""torch's SyncBatchNorm on CPUs: it has its kernels for accelerators only, and these are theirs from the formulas."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _sum_channels(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).sum(1)


def find_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1/σ [C] of this process's batch, ddof 0."""
    rows = x.transpose(0, 1).flatten(1)
    return rows.mean(1), (rows.var(1, correction=0) + eps).rsqrt()


def gather_stats(
    x: Tensor,
    means: Tensor,
    scales: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and 1/σ [C] of all processes' values; the running buffers take them, the variance with ddof 1."""
    shares = (counts / counts.sum())[:, None]
    mean = (shares * means).sum(0)
    var = (shares * (scales**-2 - eps + (means - mean) ** 2)).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
    return mean, (var + eps).rsqrt()


def normalize(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Tensor:
    return (x - _per_channel(mean, x)) * _per_channel(scale * weight, x) + _per_channel(bias, x)


def sum_gradients(
    grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, *needed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums [C] of the gradient, and of its product with the deviations; the gradients of weight and bias."""
    total, product = _sum_channels(grad), _sum_channels(grad * (x - _per_channel(mean, x)))
    return total, product, product * scale, total


def find_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, total: Tensor, product: Tensor, counts: Tensor
) -> Tensor:
    """That of the input, from the sums over all processes."""
    n = counts.sum()
    slope = (x - _per_channel(mean, x)) * _per_channel(scale**2 * product / n, x)
    return (grad - _per_channel(total / n, x) - slope) * _per_channel(scale * weight, x)


def on_cpu() -> Any:
    """A context in which SyncBatchNorm trains on CPUs."""
    kernels = {
        "batch_norm_stats": find_stats,
        "batch_norm_gather_stats_with_counts": gather_stats,
        "batch_norm_elemt": normalize,
        "batch_norm_backward_reduce": sum_gradients,
        "batch_norm_backward_elemt": find_gradient,
    }
    return mock.patch.multiple(
        torch, **kernels, _C=mock.Mock(wraps=torch._C, _get_privateuse1_backend_name=lambda: "cpu")
    )
