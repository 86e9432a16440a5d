"""Batch norms in graphs that `torch.export` has made: read from their nodes, and put back as modules to be measured."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from bnlab.model.layers import BatchNorm

_WITH_MODE = "batch_norm"  # the names of the nodes, by what torch.export was asked for
_WITHOUT_MODE = "_native_batch_norm_legit_no_training"
_TENSORS = ("weight", "bias", "running_mean", "running_var")  # that a node reads after its input, in this order
_BY_AXES: dict[int, type[BatchNorm]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def list_nodes(model: nn.Module, caller: str) -> Iterator[tuple[str, BatchNorm]]:
    """List the batch norms of exported graphs, by the name that their buffers have in common.

    Raises:
        ValueError: a graph's batch norm reads statistics that are no buffers of the graph.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if _find_kind(node):
                    name, norm = _read_node(module, node, caller)
                    full_name = ".".join(part for part in (prefix, name) if part)
                    yield full_name, norm


def insert_norms(model: nn.Module, caller: str) -> nn.Module | None:
    """Put a batch norm of torch's in the place of each node of an exported graph, so that it is measured as any other.

    Returns:
        A module that computes the same, with the graph's own tensors under the same names. None if it is no graph, or
        has no batch norm; if it was exported for batches of one size, as parts of a batch are run too; or if a node
        reads what is not called as a batch norm's tensors are, so that others may read it as well.
    """
    if not isinstance(model, fx.GraphModule) or not _takes_any_batch(model.graph):
        return None
    # The caller's graph stays as it is; the tensors are shared.
    graph = copy.deepcopy(model.graph)
    parts = {node.target: _get(model, node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
    is_changed = False
    # A list, because nodes are added and erased in the loop.
    for node in list(graph.nodes):
        if not _find_kind(node):
            continue
        name, norm = _read_node(model, node, caller)
        if not _is_named_as_usual(graph, node, name):
            return None
        parts.setdefault(name, norm)  # a layer that is called twice has two nodes
        with graph.inserting_after(node):
            called = graph.call_module(name, (node.args[0],))
        _replace(graph, node, called)
        is_changed = True
    return fx.GraphModule(parts, graph) if is_changed else None


def _replace(graph: fx.Graph, node: fx.Node, called: fx.Node) -> None:
    """Replace a batch norm's output, which is the first of several where the node has no mode."""
    if _find_kind(node) == _WITH_MODE:
        node.replace_all_uses_with(called)
    for item in list(node.users):
        if item.target is operator.getitem and item.args[1] == 0:
            item.replace_all_uses_with(called)
            graph.erase_node(item)
    # Another part of its output may still be used.
    if not node.users:
        graph.erase_node(node)


def _takes_any_batch(graph: fx.Graph) -> bool:
    """Return whether a graph was exported with a dynamic first axis of its inputs."""
    given = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    sizes = [value.shape[0] for value in given if isinstance(value, Tensor) and value.dim()]
    # A dynamic axis has a symbolic size, and a fixed one a number.
    return bool(sizes) and not any(isinstance(size, int) for size in sizes)


def _find_kind(node: fx.Node) -> str:
    """Find which kind of batch norm with running statistics a node is; "" if none."""
    if node.op != "call_function":
        return ""
    # The name of an operator ends with its overload, as in batch_norm.default.
    kind = getattr(node.target, "__name__", "").partition(".")[0]
    if kind not in (_WITH_MODE, _WITHOUT_MODE):
        return ""
    # The fourth argument is the running mean.
    return "" if node.args[3] is None else kind


def _is_named_as_usual(graph: fx.Graph, node: fx.Node, layer: str) -> bool:
    """Return whether a node's tensors have the names of a batch norm's, and no other tensor has such a name."""
    usual_names = [f"{layer}.{tensor}" for tensor in _TENSORS]
    # The usual name of each tensor that the node reads, by the name that it has. A missing weight or bias is None.
    usual_by_target = {}
    for argument, usual_name in zip(node.args[1:5], usual_names, strict=True):
        if isinstance(argument, fx.Node):
            usual_by_target[str(argument.target)] = usual_name
    if any(target != usual_name for target, usual_name in usual_by_target.items()):
        return False

    read_in_graph = {str(other.target) for other in graph.nodes if other.op == "get_attr"}
    read_by_others = read_in_graph.intersection(usual_names) - usual_by_target.keys()
    return not read_by_others


def _read_node(graph: fx.GraphModule, node: fx.Node, caller: str) -> tuple[str, BatchNorm]:
    """Read the name and the tensors of a batch norm from its node: input, weight, bias, mean, variance, and so on."""
    x, weight, bias, mean, var, *rest = node.args
    running_mean = _get_tensor(graph, mean)
    running_var = _get_tensor(graph, var)
    if running_mean is None or running_var is None:
        raise ValueError(
            f"{caller}: {node.name!r} of the graph reads running statistics that are no buffers of it; pass "
            "program.module() of what torch.export returned"
        )
    name = str(mean.target).rpartition(".")[0]  # type: ignore[union-attr]
    # A node without a mode is always in eval mode, and has no argument that says so.
    settings: list[Any] = [*rest] if _find_kind(node) == _WITH_MODE else [False, *rest]
    is_training, momentum, eps = settings[:3]
    norm = make_norm(
        running_mean,
        running_var,
        weight=_get_tensor(graph, weight),
        bias=_get_tensor(graph, bias),
        count=dict(graph.named_buffers()).get(f"{name}.num_batches_tracked"),
        momentum=momentum,
        eps=eps,
        training=bool(is_training),
        kind=_choose_class(x),
    )
    return name, norm


def _choose_class(x: Any) -> type[BatchNorm]:
    """Choose the batch norm of torch's for an input: each class refuses inputs with another number of axes."""
    given = x.meta.get("val") if isinstance(x, fx.Node) else None
    if not isinstance(given, Tensor):
        return nn.BatchNorm1d
    return _BY_AXES.get(given.dim(), nn.BatchNorm1d)


def _get_tensor(graph: fx.GraphModule, part: Any) -> Tensor | None:
    """Return the tensor of the graph that an argument of a node is; None where it is none of its tensors."""
    if not isinstance(part, fx.Node) or part.op != "get_attr":
        return None
    value = _get(graph, part.target)
    return value if isinstance(value, Tensor) else None


def _get(module: nn.Module, target: Any) -> Any:
    """Return what a dotted name stands for; None where there is no such thing."""
    value: Any = module
    for name in str(target).split("."):
        value = getattr(value, name, None)
    return value


def make_norm(
    mean: Any,
    var: Any,
    *,
    weight: Any,
    bias: Any,
    count: Any,
    momentum: Any,
    eps: float,
    training: bool,
    kind: type[BatchNorm] = nn.BatchNorm1d,
) -> BatchNorm:
    """Make a batch norm of torch's that holds these very tensors."""
    # The tensors are assigned and not copied: what is written into the norm is written into the model, too.
    norm = kind(len(mean), eps, momentum, affine=False)
    norm.running_mean, norm.running_var = mean, var
    norm.num_batches_tracked = count if isinstance(count, Tensor) else None
    for name, values in {"weight": weight, "bias": bias}.items():
        if isinstance(values, Tensor) and values.shape == mean.shape:
            is_parameter = isinstance(values, nn.Parameter)
            setattr(norm, name, values if is_parameter else nn.Parameter(values, requires_grad=False))
    return norm.train(training)
