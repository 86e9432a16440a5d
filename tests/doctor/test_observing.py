"""What layers see batch by batch, against numpy and against a plain loop with hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.doctor.evidence.observing import View, observe_batches
from bnlab.doctor.evidence.setup import set_up
from bnlab.model.batches import Forward
from bnlab.model.layers import batch_norm_layers
from tests.helpers import images, plain


def observe(model: nn.Module, batches: Sequence[Any], forward: Forward | None = None) -> tuple[View, list[Tensor]]:
    """Observe all layers of a model; also the outputs of its batches."""
    outputs: list[Tensor] = []

    def take_output(batch: Any, output: Tensor) -> None:
        outputs.append(output)

    layers = batch_norm_layers(model, caller="test")
    task = set_up(model, layers, forward, None, None).on(batches)
    return observe_batches(task, take_output), outputs


def test_views_are_those_of_a_plain_loop_with_hooks() -> None:
    model = plain()
    batches = images(6, 4, 2)
    seen: dict[str, list[Tensor]] = {"1": [], "4": []}
    copied = plain().train()
    copied[8].eval()  # dropout
    for name, calls in seen.items():
        copied.get_submodule(name).register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0].clone()))
    with torch.no_grad():
        expected = [copied(batch) for batch in batches]

    view, outputs = observe(model, batches)

    assert (view.batches, view.batch_size) == (3, 4)
    assert all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True))
    for name, calls in seen.items():
        layer = view.layers[name]
        values = torch.cat([call.double().transpose(0, 1).flatten(1) for call in calls], 1)
        by_image = torch.cat([call.double().mean((2, 3)) for call in calls])
        center = calls[0].double().mean((0, 2, 3))
        squares_by_image = torch.cat([(call.double() - center[:, None, None]).square().mean((2, 3)) for call in calls])
        by_batch = torch.stack([call.double().mean((0, 2, 3)) for call in calls]).numpy()
        sizes = [6, 4, 2]
        mean = np.average(by_batch, axis=0, weights=sizes)
        squares = np.average((by_batch - mean) ** 2, axis=0, weights=sizes)
        assert layer.values == calls[0][:, 0].numel()
        assert len(layer.calls) == 1
        assert torch.allclose(layer.pooled.mean, values.mean(1))
        assert torch.allclose(layer.pooled.var, values.var(1, correction=0))
        assert torch.allclose(layer.image_means.var, by_image.var(0), rtol=1e-5)
        assert np.allclose(layer.batch_means.var, squares * 3 / 2)
        assert torch.allclose(layer.image_squares.mean, squares_by_image.mean(0), rtol=1e-5)
        assert torch.allclose(layer.image_squares.var, squares_by_image.var(0), rtol=1e-4)
        assert torch.allclose(layer.batch_squares.mean, layer.image_squares.mean)
        assert layer.batch_squares.count == 3


class Twice(nn.Module):
    """Gives a layer the images, and then what is 10 more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.norm(x + 10)


def test_two_calls_of_a_layer_are_told_apart() -> None:
    batches = images(4, 4)
    view, _ = observe(Twice(), batches)

    layer = view.layers["norm"]
    mean = torch.cat(batches).double().mean((0, 2, 3))
    assert len(layer.calls) == 2
    assert torch.allclose(layer.calls[0].mean, mean)
    assert torch.allclose(layer.calls[1].mean, mean + 10)
    assert torch.allclose(layer.pooled.mean, mean + 5)
    assert layer.batch_means.count == 4
    assert layer.image_means.count == 16


def test_rows_that_are_no_images_have_no_image_means() -> None:
    """Rows of one image are not independent: a layer over positions [N·T, C] says nothing of how images differ."""
    model = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(3))

    view, _ = observe(model, [torch.randn(4, 5, 3), torch.randn(4, 5, 3)])

    assert view.layers["1"].image_means.count == 0
    assert view.layers["1"].batch_means.count == 2


def test_a_last_batch_of_one_value_is_normalized_by_the_buffers() -> None:
    """Torch refuses it in train mode."""
    view, outputs = observe(nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(4, 3), torch.ones(1, 3)])

    assert len(outputs[1]) == 1
    assert view.layers["0"].values == 4
    assert view.layers["0"].image_means.count == 5


def test_a_layer_of_eps_0_is_observed_although_torch_refuses_it_in_train_mode() -> None:
    rows = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))

    view, outputs = observe(nn.Sequential(nn.BatchNorm1d(3, eps=0.0)), list(rows))
    _, constant = observe(nn.Sequential(nn.BatchNorm1d(1, eps=0.0)), [torch.full((4, 1), 3.0)])

    scale = rows[0].var(0, correction=0).sqrt()
    assert torch.allclose(outputs[0], (rows[0] - rows[0].mean(0)) / scale, atol=1e-6)
    assert torch.allclose(view.layers["0"].pooled.mean, rows.double().mean((0, 1)))
    assert constant[0].tolist() == [[0.0]] * 4
