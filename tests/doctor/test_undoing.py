"""Undos: what they do to a model and its images, and that all is as before when they end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.doctor.undo import (
    change_images,
    normalize_each_batch,
    pass_through,
    replace_forwards,
    write_averages,
    write_weights,
)
from bnlab.model.borrow import measured
from bnlab.model.layers import batch_norm_layers
from tests.helpers import images, plain, unchanged

Apply = Callable[[nn.Module, ExitStack], object]


def make_undos(model: nn.Module) -> dict[str, Apply]:
    """Make an undo of each kind for a model."""
    layers = batch_norm_layers(model, caller="test")
    weights = [layer.weight for layer in layers.values() if layer.weight is not None]
    averages = {name: torch.full((2, layer.num_features), 2.0).double() for name, layer in layers.items()}
    return {
        "averages": write_averages(layers, averages),
        "weights": write_weights([(weight, torch.ones_like(weight)) for weight in weights]),
        "images": change_images(lambda batch: batch / 2 - 1),
        "forwards": replace_forwards(layers.values(), pass_through),
        "each batch": normalize_each_batch(layers),
    }


def fail(model: nn.Module, stack: ExitStack) -> None:
    raise KeyError


def predict(model: nn.Module, *undos: Apply) -> Tensor:
    with measured(model), ExitStack() as stack:
        for undo in undos:
            undo(model, stack)
        return model(images(8)[0]).clone()


@pytest.mark.parametrize("kind", make_undos(plain()))
def test_an_undo_changes_predictions_and_leaves_the_model_as_it_was(kind: str) -> None:
    """Also inside another undo, and where something fails."""
    model = plain().train()
    model.register_forward_pre_hook(lambda module, args: None)
    model[1].eval()
    undos = make_undos(model)

    with unchanged(model):
        before = predict(model)
        changed = predict(model, undos[kind])
        with pytest.raises(KeyError):
            predict(model, undos[kind], *undos.values(), fail)
        after = predict(model)

    assert not torch.equal(changed, before)
    assert torch.equal(after, before)


class TakesAnything(nn.Module):
    """Returns what it was given."""

    def forward(self, batch: Any, **others: Any) -> Any:
        return batch, others


def test_numbers_of_images_are_changed_wherever_they_are_and_labels_are_not() -> None:
    model = TakesAnything()
    labels = torch.tensor([1, 2])
    pixels = torch.tensor([[1.0, 2.0]])
    scale = torch.tensor(3.0)  # no axis: it is a setting

    with ExitStack() as stack:
        change_images(lambda batch: batch + 1)(model, stack)
        (first, second), others = model((pixels, {"labels": labels, "scale": scale}), mask=pixels)

    assert torch.equal(first, pixels + 1)
    assert torch.equal(second["labels"], labels) and torch.equal(second["scale"], scale)
    assert torch.equal(others["mask"], pixels + 1)


def test_each_batch_is_normalized_by_its_own_unless_it_has_one_value() -> None:
    """A network that calls `eval()` in its forward is told too; eps of 0, which torch refuses, is none for it."""
    layer = nn.BatchNorm1d(2, eps=0.0).eval()
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])

    with unchanged(layer), measured(layer), ExitStack() as stack:
        normalize_each_batch({"": layer})(layer, stack)
        layer.eval()
        alone = layer(values[:1])
        together = layer(values)

    assert torch.allclose(together, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert torch.equal(alone, values[:1])  # by the averages, which are 0 and 1
    assert layer.eps == 0.0
