"""Mistakes in any call that borrows a model: what the message says, and that the model comes back as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import (
    decompose,
    inference,
    population_statistics,
    record,
    record_frozen,
    running_statistics,
    self_consistency,
    using,
)
from tests.helpers import images, plain, residual, train, unchanged

with record(_trained := residual()) as TRACE:
    train(_trained, images(4, 4))


def _decompose(model: nn.Module, batches: Any) -> None:
    decompose(model, TRACE, lambda step: model.state_dict(), batches)


def _consistency(model: nn.Module, batches: Any) -> None:
    self_consistency(model, running_statistics(model), batches)


def _under_statistics(model: nn.Module, batches: Any) -> None:
    with using(model, running_statistics(model)):
        for batch in batches:
            model(batch)


def _at_inference(model: nn.Module, batches: Any) -> None:
    with inference.applied(model, inference.TestBatch()):
        for batch in batches:
            model(batch)


MEASURING: dict[str, Callable[[Any, Any], object]] = {
    "population_statistics": population_statistics,
    "layerwise": lambda model, batches: population_statistics(model, batches, strategy="layerwise"),
    "batch upstream": lambda model, batches: population_statistics(model, batches, upstream="batch"),
    "self_consistency": _consistency,
    "record_frozen": record_frozen,
    "decompose": _decompose,
}
BORROWING = MEASURING | {"using": _under_statistics, "inference.applied": _at_inference}

borrowing = pytest.mark.parametrize("call", BORROWING.values(), ids=BORROWING)
measuring = pytest.mark.parametrize("call", MEASURING.values(), ids=MEASURING)


class Breaking(nn.Module):
    """Raises in its `at`-th forward, after it has changed all that a forward can change."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner, self.at = residual(), at
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        x = self.inner(x) + torch.randn(4)
        self.left = x
        if len(self.calls) == self.at or len(x) == self.at:
            raise ArithmeticError("of the model's own")
        return x


@borrowing
@pytest.mark.parametrize("at", [1, 3])
def test_a_forward_that_raises_half_way(call: Callable[[Any, Any], object], at: int) -> None:
    model = Breaking(at).train()
    data = images(5, 4, 3)
    kept = [batch.clone() for batch in data]
    with unchanged(model), pytest.raises(ArithmeticError, match="of the model's own"):
        call(model, data)
    assert all(torch.equal(a, b) for a, b in zip(data, kept, strict=True))


@borrowing
def test_what_is_no_model(call: Callable[[Any, Any], object]) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, found list"):
        call([plain()], images(4))


@borrowing
def test_a_model_without_batch_norm(call: Callable[[Any, Any], object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    with unchanged(model), pytest.raises(ValueError, match="no BatchNorm layer with running statistics in Sequential"):
        call(model, images(4))


@measuring
def test_no_batches(call: Callable[[Any, Any], object]) -> None:
    model = residual().train()
    with unchanged(model), pytest.raises(ValueError, match=r"pass at least one batch"):
        call(model, [])


@measuring
def test_data_that_is_not_finite(call: Callable[[Any, Any], object]) -> None:
    model, (good, bad) = residual().train(), images(4, 4)
    bad[1, 2, 0, 0] = torch.nan
    with unchanged(model), pytest.raises(ValueError, match=r"layer '1' has NaN or infinite values; look at data"):
        call(model, [good, bad])
