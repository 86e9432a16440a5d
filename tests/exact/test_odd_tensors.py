"""Tensors without strides, and what else may be in a batch or a model: measured, or named in a line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.masked import masked_tensor

from bnlab import population_statistics
from tests import references
from tests.exact.zoo import Net
from tests.helpers import assert_moments, unchanged

NODES = [torch.randn(16, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
EDGES = (torch.rand(16, 16, generator=torch.Generator().manual_seed(9)) < 0.3).float()
SPARSE: dict[str, Callable[[Tensor], Tensor]] = {"coo": Tensor.to_sparse, "csr": Tensor.to_sparse_csr}


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_adjacency_in_the_batch(kind: str, strategy: str) -> None:
    edges = SPARSE[kind](EDGES)
    model = Net(lambda net, nodes: net.bn(edges @ nodes), bn=nn.BatchNorm1d(3))
    batches = [(nodes, edges) for nodes in NODES]

    exact = population_statistics(model, batches, strategy=strategy)

    assert_moments(exact["bn"], references.merge([(EDGES @ nodes).double() for nodes in NODES]))


@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_buffer(kind: str) -> None:
    model = Net(lambda net, x: net.bn((net.mixes @ x.T).T), bn=nn.BatchNorm1d(3))
    model.register_buffer("mixes", SPARSE[kind](torch.eye(3) * 2))

    exact = population_statistics(model, NODES)

    assert_moments(exact["bn"], references.merge([2 * nodes.double() for nodes in NODES]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_a_buffer_that_is_made_of_other_tensors() -> None:
    """Like torchao's quantized weights it has no memory of its own, and knows no comparison."""
    model = Net(lambda net, x: net.bn(x * net.scale.to_tensor(0)), bn=nn.BatchNorm1d(3))
    model.register_buffer("scale", masked_tensor(torch.full((3,), 2.0), torch.ones(3, dtype=torch.bool)))

    exact = population_statistics(model, NODES)

    assert_moments(exact["bn"], references.merge([2 * nodes.double() for nodes in NODES]))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_in_the_batch(layout: torch.layout) -> None:
    model = Net(lambda net, x: net.bn(torch.cat(list(x.unbind()))), bn=nn.BatchNorm1d(3))
    batches = [torch.nested.nested_tensor([nodes[:4], nodes[4:]], layout=layout) for nodes in NODES]

    assert_moments(population_statistics(model, batches)["bn"], references.merge([x.double() for x in NODES]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1e19), (1e20, 1e15), (1e20, 1e18)])
def test_values_whose_squares_are_beyond_float32(mean: float, deviation: float, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(8, 3, 5, 5, generator=generator) * deviation + mean for _ in range(3)]
    model = nn.Sequential(nn.BatchNorm2d(3))

    exact = population_statistics(model, [x.to(memory_format=layout) for x in data])

    assert_moments(exact["0"], references.merge([x.double() for x in data]))


def test_a_variance_beyond_float32_is_refused() -> None:
    data = [x[:, :, None, None] * 1e20 for x in NODES]
    with pytest.raises(ValueError, match=r"the variance of layer '0' is beyond torch\.float32; scale the data"):
        population_statistics(nn.Sequential(nn.BatchNorm2d(3)), data)


def _write_into_workspace(net: Any, x: Tensor) -> Tensor:
    net.workspace.copy_(2 * x)
    return net.second(net.first(net.workspace) + 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
def test_an_activation_whose_memory_is_used_again(strategy: str) -> None:
    """Forwards that wait find the values of another batch in it, which the check sees."""
    first = nn.BatchNorm1d(3, affine=False)
    model = Net(_write_into_workspace, first=first, second=nn.BatchNorm1d(3)).eval()
    model.workspace = torch.empty(16, 3)
    data = [x * (number + 1) for number, x in enumerate(NODES)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exact = population_statistics(model, data, strategy=strategy)

    whole = references.merge([2 * x.double() for x in data])
    assert_moments(exact["first"], whole)
    normalized = [(2 * x.double() - whole.mean) / (whole.var + 1e-5).sqrt() + 1 for x in data]
    assert_moments(exact["second"], references.merge(normalized))
    messages = [str(warning.message) for warning in caught]
    assert exact.check is not None and exact.check.is_exact
    if strategy == "breadth":
        assert len(messages) == 1 and "gives layer 'second' another input" in messages[0]
    else:
        assert not messages


def make_exported(*_: Any) -> nn.Module:
    backbone = torch.export.export(nn.Sequential(nn.BatchNorm1d(3)).eval(), (NODES[0],)).module()
    return Net(lambda net, x: net.bn(net.backbone(x)), bn=nn.BatchNorm1d(3), backbone=backbone)


def make_transformed(transform: Callable[[Any, Tensor], Any]) -> nn.Module:
    return Net(transform, bn=nn.BatchNorm1d(3))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]], type[Exception], str]] = {
    "vmap": (lambda: make_transformed(lambda net, x: torch.vmap(net.bn)(x.view(2, 8, 3))), lambda: NODES, ValueError,
             "layer 'bn' is .* inside of vmap or grad of torch.func"),
    "grad": (lambda: make_transformed(lambda net, x: torch.func.grad(lambda y: net.bn(y).square().sum())(x)),
             lambda: NODES, ValueError, "layer 'bn' is .* inside of vmap or grad of torch.func"),
    "nested": (lambda: make_transformed(lambda net, x: net.bn(x)),
               lambda: [torch.nested.nested_tensor([NODES[0][:4], NODES[0][4:]], layout=torch.jagged)], ValueError,
               "the input of layer 'bn' is nested"),
    "generator": (lambda: nn.BatchNorm1d(3), lambda: [(NODES[0], (x for x in NODES))], TypeError,
                  "a batch holds a generator"),
    "exported": (make_exported, lambda: NODES, ValueError, "'backbone' was exported by torch.export"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_named(name: str) -> None:
    make, make_batches, error, message = REFUSED[name]
    model = make()
    batches = make_batches()
    with unchanged(model), pytest.raises(error, match=message):
        population_statistics(model, batches)
