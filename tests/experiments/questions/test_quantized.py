"""Weights of few bits, and the networks that are trained with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnlab.model.layers import batch_norm_layers
from experiments.questions.quantized.network import QuantizedConv2d, build_network, quantize


def test_four_weights_of_three_bits() -> None:
    """Integers from -3 to 3, a step of 2."""
    weight = torch.tensor([-6.0, 0.9, 1.1, 3.1])

    assert quantize(weight, 3).tolist() == pytest.approx([-6, 0, 2, 4])


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    weight = torch.tensor([0.2, -1.0, 0.7], requires_grad=True)
    slopes = torch.tensor([1.0, 2.0, 3.0])

    (quantize(weight, 3) * slopes).sum().backward()

    assert weight.grad is not None and torch.equal(weight.grad, slopes)


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_network_predicts_with_rounded_weights(depthwise: bool) -> None:
    torch.manual_seed(0)
    model = build_network(1, 16, 5, bits=4, depthwise=depthwise, width=4).eval()
    torch.manual_seed(0)
    floats = build_network(1, 16, 5, depthwise=depthwise, width=4).eval()
    images = torch.randn(2, 1, 16, 16)
    assert not torch.equal(model(images), floats(images))

    for layer in floats.modules():
        if isinstance(layer, QuantizedConv2d):
            layer.weight.data = quantize(layer.weight, 4)

    assert torch.equal(model(images), floats(images))


def test_depthwise_and_pointwise_layers_alternate_behind_the_first() -> None:
    model = build_network(3, 32, 36)
    layers = [layer for layer in model.children() if isinstance(layer, nn.Conv2d)]

    first, *blocks = layers
    assert first.groups == 1 and not isinstance(first, QuantizedConv2d)
    assert [layer.groups for layer in blocks] == [32, 1, 32, 1, 64, 1]
    assert [layer.kernel_size for layer in blocks] == [(3, 3), (1, 1)] * 3
    norms = batch_norm_layers(model, caller="").values()
    assert [norm.num_features for norm in norms] == [32, 32, 32, 32, 64, 64, 128]
