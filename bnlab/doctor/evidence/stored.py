"""Batch norms that cannot be measured, by what they store: modules of other classes, and nodes of exported graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnlab.model.layers import BatchNorm, list_others

_WITH_MODE = "batch_norm"  # the names of the nodes, by what torch.export was asked for
_WITHOUT_MODE = "_native_batch_norm_legit_no_training"
_USUAL_EPS = 1e-5  # where a module does not say


def list_stored(model: nn.Module, caller: str) -> dict[str, BatchNorm]:
    """List batch norms that nothing can be measured of, by name: each a batch norm of torch's with the same tensors.

    A module of another class counts if it has `running_mean` and `running_var` of one length, and a node of an exported
    graph by the buffers that it reads. They are to be read only.

    Raises:
        ValueError: a graph's batch norm reads statistics that are no buffers of the graph.
    """
    stored = dict(_list_nodes(model, caller))
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
    return _make(
        module.running_mean,
        module.running_var,
        weight=getattr(module, "weight", None),
        bias=getattr(module, "bias", None),
        count=getattr(module, "num_batches_tracked", None),
        momentum=getattr(module, "momentum", None),
        eps=getattr(module, "eps", _USUAL_EPS),
        training=module.training,
    )


def _list_nodes(model: nn.Module, caller: str) -> Iterator[tuple[str, BatchNorm]]:
    """List the batch norms of exported graphs, by the name that their buffers have in common."""
    for prefix, graph_module in model.named_modules():
        if not isinstance(graph_module, fx.GraphModule):
            continue
        for node in graph_module.graph.nodes:
            kind = getattr(node.target, "__name__", "").partition(".")[0] if node.op == "call_function" else ""
            if kind in (_WITH_MODE, _WITHOUT_MODE) and node.args[3] is not None:
                yield _read_node(prefix, graph_module, node, kind, caller)


def _read_node(prefix: str, graph: fx.GraphModule, node: fx.Node, kind: str, caller: str) -> tuple[str, BatchNorm]:
    """Read the name and the tensors of a batch norm from its node: input, weight, bias, mean, variance, and so on."""
    _, weight, bias, mean, var, *rest = node.args
    buffers = [_get_tensor(graph, part) for part in (mean, var)]
    if any(buffer is None for buffer in buffers):
        raise ValueError(
            f"{caller}: {node.name!r} of the graph reads running statistics that are no buffers of it; pass "
            "program.module() of what torch.export returned"
        )
    place = str(mean.target).rpartition(".")[0]  # type: ignore[union-attr]
    settings: list[Any] = [*rest] if kind == _WITH_MODE else [False, *rest]
    is_training, momentum, eps = settings[:3]
    norm = _make(
        *buffers,
        weight=_get_tensor(graph, weight),
        bias=_get_tensor(graph, bias),
        count=_find_count(graph, place),
        momentum=momentum,
        eps=eps,
        training=bool(is_training),
    )
    return ".".join(part for part in (prefix, place) if part), norm


def _get_tensor(graph: fx.GraphModule, part: Any) -> Tensor | None:
    """Return the tensor of the graph that an argument of a node is; None where it is none of its tensors."""
    if not isinstance(part, fx.Node) or part.op != "get_attr":
        return None
    value: Any = graph
    for name in str(part.target).split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, Tensor) else None


def _find_count(graph: fx.GraphModule, place: str) -> Tensor | None:
    buffers = dict(graph.named_buffers())
    return buffers.get(f"{place}.num_batches_tracked")


def _make(
    mean: Any, var: Any, *, weight: Any, bias: Any, count: Any, momentum: Any, eps: float, training: bool
) -> BatchNorm:
    """Make a batch norm of torch's that holds these very tensors."""
    norm = nn.BatchNorm1d(len(mean), eps, momentum, affine=False)
    norm.running_mean, norm.running_var = mean, var
    norm.num_batches_tracked = count if isinstance(count, Tensor) else None
    for name, values in {"weight": weight, "bias": bias}.items():
        if isinstance(values, Tensor) and values.shape == mean.shape:
            is_parameter = isinstance(values, nn.Parameter)
            setattr(norm, name, values if is_parameter else nn.Parameter(values, requires_grad=False))
    return norm.train(training)


def holds_start(norm: BatchNorm) -> bool:
    """Return whether a batch norm holds mean 0 and variance 1 in all channels, where averages start."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    return not bool(mean.any()) and torch.equal(var, torch.ones_like(var))
