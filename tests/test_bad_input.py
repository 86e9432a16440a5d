"""Mistakes in any call that borrows a model: what the message names, and that the model comes back as it was."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import (
    Moments,
    MomentTrace,
    decompose,
    inference,
    population_statistics,
    record_frozen,
    running_statistics,
    using,
)
from bnlab.estimators import EMA, Window
from tests.helpers import images, plain, residual, unchanged


def _make_trace(model: nn.Module) -> MomentTrace:
    """The trace of a model like this one, without a random number that the caller would miss."""
    with torch.random.fork_rng(devices=[]):
        return record_frozen(Breaking(at=0) if isinstance(model, Breaking) else residual(), images(4, 4))


def _decompose(model: nn.Module, batches: Any, weights: Any = None) -> None:
    copies = (lambda step: copy.deepcopy(model.state_dict())) if weights is None else weights
    decompose(model, _make_trace(model), copies, batches)


def _under_statistics(model: nn.Module, batches: Any) -> None:
    with using(model, running_statistics(model)):
        for batch in batches:
            model(batch)


def _at_inference(model: nn.Module, batches: Any) -> None:
    with inference.apply_statistics(model, inference.TestBatch()):
        for batch in batches:
            model(batch)


MEASURING: dict[str, Callable[..., object]] = {
    "population_statistics": population_statistics,
    "layerwise": partial(population_statistics, strategy="layerwise"),
    "precise": partial(population_statistics, statistic="precise"),
    "record_frozen": record_frozen,
    "decompose": _decompose,
}
BORROWING = MEASURING | {"using": _under_statistics, "inference.apply_statistics": _at_inference}

borrowing = pytest.mark.parametrize("call", BORROWING.values(), ids=BORROWING)
measuring = pytest.mark.parametrize("call", MEASURING.values(), ids=MEASURING)


class Breaking(nn.Module):
    """Raises in its `at`-th forward, after it has changed all that a forward can change."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner = residual()
        self.at = at
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        x = self.inner(x) + torch.randn(4)
        self.left = x
        if 0 < self.at <= len(self.calls) or len(x) == self.at:
            raise ArithmeticError("of the model's own")
        return x


@borrowing
def test_a_forward_that_raises_half_way(call: Callable[[Any, Any], object]) -> None:
    model = Breaking(at=3).train()
    data = images(5, 4, 3)
    kept = [batch.clone() for batch in data]
    with unchanged(model), pytest.raises(ArithmeticError, match="own"):
        call(model, data)

    assert all(torch.equal(a, b) for a, b in zip(data, kept, strict=True))


@borrowing
def test_what_is_no_model(call: Callable[[Any, Any], object]) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, .*list"):
        call([plain()], images(4))


@borrowing
def test_a_model_without_batch_norm(call: Callable[[Any, Any], object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    with unchanged(model), pytest.raises(ValueError, match=r"BatchNorm .*Sequential"):
        call(model, images(4))


def spoil(batch: Tensor) -> Tensor:
    spoiled = batch.clone()
    spoiled[1, 2, 0, 0] = torch.nan
    return spoiled


BATCHES: dict[str, tuple[Callable[[], Any], str]] = {  # and what is named
    "nothing": (lambda: None, "NoneType"),
    "a tensor": (lambda: torch.zeros(4, 3, 8, 8), "Tensor"),
    "an empty list": (list, "one batch"),
    "NaN": (lambda: [*images(4), *map(spoil, images(4))], "layer '1'.* NaN"),
    "an empty batch": (lambda: [()], "empty"),
    "other channels": (lambda: images(4, channels=2), "channels"),  # the convolution's own error
}


@measuring
@pytest.mark.parametrize("name", BATCHES)
def test_what_are_no_batches_for_the_model(call: Callable[[Any, Any], object], name: str) -> None:
    make, named = BATCHES[name]
    model = residual().train()
    with unchanged(model), pytest.raises((TypeError, ValueError, RuntimeError), match=named):
        call(model, make())


FIRST: dict[str, tuple[Callable[[], Tensor], str]] = {  # the input of a first layer, and what is named
    "one channel": (lambda: torch.zeros(4, 1, 8, 8), r"layer '0' .*\b3 channels.*\(4, 1, 8, 8\)"),
    "integers": (lambda: torch.zeros(4, 3, 8, 8, dtype=torch.int64), r"layer '0' .*torch\.int64"),
}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("borrower", ["population_statistics", "precise", "inference.apply_statistics"])
def test_what_a_first_layer_cannot_take(borrower: str, name: str) -> None:
    make, named = FIRST[name]
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    with unchanged(model), pytest.raises(ValueError, match=named):
        BORROWING[borrower](model, [make()])


def test_an_empty_batch_at_inference() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    with unchanged(model), pytest.raises(ValueError, match=r"no images .*'0'"):
        _at_inference(model, [torch.zeros(0, 3, 8, 8)])


def measure(model: nn.Module, **options: Any) -> None:
    population_statistics(model, images(4), **options)


def calling(function: Any, *arguments: Any, **keywords: Any) -> Callable[[nn.Module], object]:
    """A call with arguments of any type, whatever the model."""
    return lambda model: function(*arguments, **keywords)


ARGUMENTS: dict[str, tuple[Callable[[nn.Sequential], object], type[Exception]]] = {  # by what the message names
    "layers=5": (partial(measure, layers=5), TypeError),
    "layers has ['1']": (partial(measure, layers=[["1"]]), ValueError),
    "max_images=True": (partial(measure, max_images=True), TypeError),
    "tolerance='0.1'": (partial(measure, max_images="auto", tolerance="0.1"), TypeError),
    "device='meta'": (partial(measure, device="meta"), ValueError),
    "Moments.of: found a list": (calling(Moments.of, [1.0, 2.0]), TypeError),
    "merge: found a int": (calling(Moments.empty(1).merge, 3), TypeError),
    "weights is a dict": (partial(_decompose, batches=[], weights={}), TypeError),
    "other layers": (lambda model: decompose(model[:3], _make_trace(model), lambda step: {}, images(4)), ValueError),
    "momentum=True": (calling(EMA, True), TypeError),
    "momentum=nan": (calling(EMA, float("nan")), ValueError),
    "momentum=0": (calling(EMA, 0), ValueError),
    "decay='0.9'": (calling(EMA.from_decay, "0.9"), TypeError),
    "k=2.5": (calling(Window, k=2.5), TypeError),
    "batch_size=nan": (calling(inference.EvalNorm, float("nan")), TypeError),
    "n='16'": (calling(inference.PseudoSamples, n="16"), TypeError),
}


@pytest.mark.parametrize("named", ARGUMENTS)
def test_arguments(named: str) -> None:
    call, error = ARGUMENTS[named]
    model = residual()
    with unchanged(model), pytest.raises(error, match=re.escape(named)):
        call(model)
