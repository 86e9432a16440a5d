"""Batch norms that cannot be measured, by what they store: modules of other classes, and nodes of exported graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bnlab.doctor.evidence.exported import list_nodes, make_norm
from bnlab.model.layers import BatchNorm, list_others

_USUAL_EPS = 1e-5  # where a module does not say


def list_stored(model: nn.Module, caller: str) -> dict[str, BatchNorm]:
    """List batch norms that nothing can be measured of, by name: each a batch norm of torch's with the same tensors.

    A module of another class counts if it has `running_mean` and `running_var` of one length, and a node of an exported
    graph by the buffers that it reads. They are to be read only.

    Raises:
        ValueError: a graph's batch norm reads statistics that are no buffers of the graph.
    """
    stored = dict(list_nodes(model, caller))
    # Modules that also have `eps` are batch norms to `is_batch_norm`: they are measured, and not in this set.
    others = {*list_others(model)}
    for name, module in model.named_modules():
        if name in others and name not in stored and _has_both(module):
            stored[name] = _copy_module(module)
    return stored


def list_incomplete(model: nn.Module) -> list[str]:
    """List the modules that have a running mean or a running variance alone, or of two lengths."""
    others = {*list_others(model)}
    incomplete = []
    for name, module in model.named_modules():
        buffers = {buffer for buffer, _ in module.named_buffers(recurse=False)}
        if name in others and buffers & {"running_mean", "running_var"} and not _has_both(module):
            incomplete.append(name)
    return incomplete


def _has_both(module: nn.Module) -> bool:
    buffers = dict(module.named_buffers(recurse=False))
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    return mean is not None and var is not None and mean.dim() == 1 and mean.shape == var.shape


def _copy_module(module: Any) -> BatchNorm:
    """Make a batch norm of a module's own tensors."""
    return make_norm(
        module.running_mean,
        module.running_var,
        weight=getattr(module, "weight", None),
        bias=getattr(module, "bias", None),
        count=getattr(module, "num_batches_tracked", None),
        momentum=getattr(module, "momentum", None),
        eps=getattr(module, "eps", _USUAL_EPS),
        training=module.training,
    )


def holds_start(norm: BatchNorm) -> bool:
    """Return whether a batch norm holds mean 0 and variance 1 in all channels, where averages start."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    return not bool(mean.any()) and torch.equal(var, torch.ones_like(var))
