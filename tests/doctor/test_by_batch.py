"""Batch norms that normalize by each batch, in the hands of a caller who may do as he likes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnlab.doctor.by_batch import normalizing_by_batch
from bnlab.layers import batch_norm_layers
from tests.helpers import images, plain, unchanged


def run(model: nn.Module, batch: Tensor, call: Callable[[nn.Module, Tensor], Tensor] | None = None) -> Tensor:
    """Run a batch under its own statistics."""
    with normalizing_by_batch(model, batch_norm_layers(model, caller="test")):
        return model(batch) if call is None else call(model, batch)


def run_in_train_mode(model: nn.Module, batch: Tensor) -> Tensor:
    """Run a batch in a copy whose batch norms are put in train mode."""
    copied = copy.deepcopy(model).eval()
    for layer in batch_norm_layers(copied, caller="test").values():
        layer.train()
    with torch.no_grad():
        return copied(batch)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, batch: model(batch),
        lambda model, batch: model.eval()(batch),
        lambda model, batch: copy.deepcopy(model).eval()(batch),
    ],
    ids=["as it is", "in eval mode", "a copy in eval mode"],
)
def test_batch_norms_alone_are_as_in_train_mode(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Dropout, which the model has, is not."""
    model = plain()
    (batch,) = images(6)

    assert torch.equal(run(model, batch, call), run_in_train_mode(model, batch))


def test_the_model_comes_back_as_it_was() -> None:
    model = plain().eval()
    model[1].train()  # modes differ
    (batch,) = images(4)
    with unchanged(model):
        run(model, batch)

    model.eval()
    model(batch)
    assert not model[1].training  # as nothing puts it in train mode any more


def test_the_model_comes_back_after_an_exception() -> None:
    def fail(model: nn.Module, batch: Tensor) -> Tensor:
        model(batch)
        raise KeyError

    model = plain()
    with unchanged(model), pytest.raises(KeyError):
        run(model, images(4)[0], fail)


def test_a_single_value_is_normalized_by_the_buffers_and_the_next_batch_by_itself() -> None:
    layer = nn.BatchNorm1d(3, eps=0.0)
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def call(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.cat([model(batch[:1]), model(batch)])

    output = run(nn.Sequential(layer), rows, call)

    assert torch.allclose(output[0], rows[0])
    assert torch.allclose(output[1:], (rows - rows.mean(0)) / rows.std(0, correction=0), atol=1e-6)
    assert layer.eps == 0.0


def test_a_layer_may_be_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)

    (batch,) = images(4)

    output = run(Keyword(), batch)

    assert torch.allclose(output.mean((0, 2, 3)), torch.zeros(3), atol=1e-6)
