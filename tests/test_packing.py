"""Convolutions with packed weights return what torch's do, to the bit, or leave it to torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from bnlab import packing, population_statistics
from bnlab.packing import pack_convolutions
from tests.helpers import images, plain, unchanged

needs_operators = pytest.mark.skipif(not packing._available(), reason="torch has no operators for packed weights here")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images that were convolved with packed weights."""
    shapes: list[tuple[int, ...]] = []
    convolve = packing._convolve

    def counted(x: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return convolve(x, *rest)

    monkeypatch.setattr(packing, "_convolve", counted)
    return shapes


def batches(*sizes: int, channels: int = 8, side: int = 9) -> list[Tensor]:
    return [x.contiguous(memory_format=torch.channels_last) for x in images(*sizes, channels=channels, side=side)]


def compare(layer: nn.Conv2d, inputs: list[Tensor]) -> None:
    expected = [layer(x) for x in inputs]
    assert pack_convolutions(layer, 10**9) == layer.weight.nbytes
    for x, y in zip(inputs, expected, strict=True):
        found = layer(x)
        assert torch.equal(found, y) and found.stride() == y.stride()


@needs_operators
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Conv2d(8, 12, 3, padding=1, stride=2, bias=False).to(memory_format=torch.channels_last),
        nn.Conv2d(8, 5, 1),
        nn.Conv2d(8, 6, (1, 5), padding=(0, 2), dilation=2),
        nn.Conv2d(8, 16, 3, groups=4),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 64, 7, stride=2, padding=3),
    ],
    ids=str,
)
def test_the_same_to_the_bit(layer: nn.Conv2d, packed: list[tuple[int, ...]]) -> None:
    # Also where batches and images differ in size from those that the weights were packed for.
    compare(layer, [*batches(16, 33, 16), *batches(20, side=13)])
    assert len(packed) == 3  # the first call is torch's


@needs_operators
@pytest.mark.parametrize(
    "inputs",
    [
        images(16, 16, channels=8),
        batches(4, 15),
        batches(16, 16, side=1),
        [x.double() for x in batches(16, 16)],
        [x.bfloat16() for x in batches(16, 16)],
    ],
    ids=["contiguous", "few", "one pixel", "float64", "bfloat16"],
)
def test_other_inputs_are_left_to_torch(inputs: list[Tensor], packed: list[tuple[int, ...]]) -> None:
    compare(nn.Conv2d(8, 4, 1).to(inputs[0].dtype), inputs)
    assert packed == []


@needs_operators
def test_other_devices_are_left_to_torch(packed: list[tuple[int, ...]]) -> None:
    layer = nn.Conv2d(8, 4, 3, device="meta")
    pack_convolutions(layer, 10**9)
    for x in batches(16, 16):
        assert layer(x.to("meta")).shape == (16, 4, 7, 7)
    assert packed == []


@needs_operators
@pytest.mark.parametrize(
    "block",
    [
        torch.enable_grad,
        lambda: torch.autocast("cpu"),
        lambda: FlopCounterMode(display=False),
        lambda: torch.backends.mkldnn.flags(enabled=False),
    ],
    ids=["gradients", "autocast", "a mode that watches operations", "oneDNN switched off"],
)
def test_where_more_happens_it_is_left_to_torch(block: Callable[[], Any], packed: list[tuple[int, ...]]) -> None:
    layer, inputs = nn.Conv2d(8, 4, 3), batches(16, 16)
    with block():
        compare(layer, inputs)
        assert layer(inputs[0]).requires_grad == torch.is_grad_enabled()
    assert packed == []


@needs_operators
def test_weights_that_change_are_used_as_they_are(packed: list[tuple[int, ...]]) -> None:
    layer, inputs = nn.Conv2d(8, 4, 3), batches(16, 16)
    compare(layer, inputs)
    layer.weight.mul_(2)
    assert torch.equal(layer(inputs[0]), nn.functional.conv2d(inputs[0], layer.weight, layer.bias))
    layer.weight = nn.Parameter(layer.weight / 3)
    assert torch.equal(layer(inputs[0]), nn.functional.conv2d(inputs[0], layer.weight, layer.bias))
    assert len(packed) == 1


@needs_operators
def test_weights_that_are_computed_are_left_to_torch(packed: list[tuple[int, ...]]) -> None:
    layer, inputs = weight_norm(nn.Conv2d(8, 4, 3)), batches(16, 16, 16)
    compare(layer, inputs)
    assert packed == []


class Standardized(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


@pytest.mark.parametrize(
    "layer",
    [Standardized(8, 4, 3), nn.Conv2d(8, 4, 3, padding="same"), nn.Conv2d(8, 4, 3, 1, 1, padding_mode="reflect")],
)
def test_layers_with_a_way_of_their_own_stay(layer: nn.Conv2d) -> None:
    assert pack_convolutions(layer, 10**9) == 0
    assert "_conv_forward" not in vars(layer)


def test_nothing_is_packed_beyond_the_limit() -> None:
    layer = nn.Conv2d(8, 4, 3)
    assert pack_convolutions(layer, layer.weight.nbytes - 1) == 0
    assert "_conv_forward" not in vars(layer)


def test_statistics_are_the_same_without_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = plain(8), batches(16, 20, 16, channels=8)
    with unchanged(model):
        found = population_statistics(model, data)
    packing._available.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    without = population_statistics(model, data)
    monkeypatch.undo()
    packing._available.cache_clear()
    for name in found:
        assert torch.equal(found[name].mean, without[name].mean) and torch.equal(found[name].var, without[name].var)
