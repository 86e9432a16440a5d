"""Mistakes in any call that borrows a model: what the message says, and that the model comes back as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import (
    Moments,
    decompose,
    inference,
    population_statistics,
    record_frozen,
    running_statistics,
    using,
)
from bnlab.estimators import EMA, Window
from bnlab.gaps.decomposition import window
from tests.helpers import images, plain, residual, unchanged


def _decompose(model: nn.Module, batches: Any, weights: Any = None) -> None:
    trace = TRACE_OF_BREAKING if isinstance(model, Breaking) else TRACE
    copies = (lambda step: copy.deepcopy(model.state_dict())) if weights is None else weights
    decompose(model, trace, copies, batches)


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


TRACE_OF_BREAKING = record_frozen(Breaking(at=0), images(4, 4))


@borrowing
def test_a_forward_that_raises_half_way(call: Callable[[Any, Any], object]) -> None:
    model = Breaking(at=3).train()
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


def spoil(batch: Tensor) -> Tensor:
    spoiled = batch.clone()
    spoiled[1, 2, 0, 0] = torch.nan
    return spoiled


BATCHES: list[tuple[Any, str]] = [  # and what is said of them
    (None, "batches is a NoneType; pass an iterable"),
    (torch.zeros(4, 3, 8, 8), "batches is a Tensor; pass an iterable"),
    ([], "pass at least one batch"),
    ([*images(4), *map(spoil, images(4))], "layer '1'.* NaN or infinite values; look at data"),
    ([()], "a batch is an empty list or tuple"),
    (images(4, channels=2), "channels"),  # the convolution's own error
]


@measuring
@pytest.mark.parametrize("case", range(len(BATCHES)))
def test_what_are_no_batches_for_the_model(call: Callable[[Any, Any], object], case: int) -> None:
    batches, message = BATCHES[case]
    model = residual().train()
    with unchanged(model), pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        call(model, batches)


@pytest.mark.parametrize("call", [MEASURING["population_statistics"], MEASURING["layerwise"], MEASURING["precise"]])
def test_what_a_first_layer_cannot_take(call: Callable[[Any, Any], object]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    with unchanged(model), pytest.raises(ValueError, match="layer '0' expects 3 channels, its input has shape"):
        call(model, images(4, channels=2))
    with unchanged(model), pytest.raises(ValueError, match=r"the input of layer '0' is torch\.int64; convert"):
        call(model, [torch.zeros(4, 3, 8, 8, dtype=torch.int64)])


MODEL = residual()
OTHER = plain()
TRACE = record_frozen(MODEL, images(4, 4))


def calling(function: Any, *arguments: Any, **keywords: Any) -> Callable[[], object]:
    """A call with arguments of any type."""
    return partial(function, *arguments, **keywords)


def measure(**options: Any) -> Callable[[], object]:
    return calling(population_statistics, MODEL, images(4), **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (measure(layers=5), TypeError, "layers=5; pass a list of layer names"),
        (measure(layers=[["1"]]), ValueError, "layers has .'1'., which is no"),
        (measure(max_images=True), TypeError, "max_images=True; pass at least 1"),
        (measure(max_images="auto", tolerance="0.1"), TypeError, "tolerance='0.1'; pass a positive relative error"),
        (measure(device="meta"), ValueError, "device='meta' holds no values"),
        (calling(Moments.of, [1.0, 2.0]), TypeError, "Moments.of: found a list"),
        (calling(Moments.empty(1).merge, 3), TypeError, "merge: found a int; pass Moments"),
        (
            partial(_decompose, MODEL, images(4), weights={}),
            TypeError,
            "weights is a dict; pass a function of the step",
        ),
        (calling(_decompose, OTHER, images(4)), ValueError, "the trace has other layers or channels than the model"),
        (calling(EMA, True), TypeError, "momentum=True: it is the weight of the new batch"),
        (calling(EMA, float("nan")), ValueError, "momentum=nan: it is the weight of the new batch"),
        (calling(EMA.from_decay, "0.9"), TypeError, "decay='0.9': it is the weight of the old average"),
        (calling(Window, k=2.5), TypeError, "window: k=2.5; it counts batches"),
        (calling(window, momentum=0), ValueError, r"momentum=0: .* lies in \(0, 1\]"),
        (calling(inference.EvalNorm, float("nan")), TypeError, "EvalNorm: batch_size=nan; it is 1 or more"),
        (calling(inference.PseudoSamples, n="16"), TypeError, "PseudoSamples: n='16'; it counts images"),
    ],
)
def test_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with unchanged(MODEL), pytest.raises(error, match=message):
        call()
    assert len(TRACE.layers["1"]) == 2


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 1, 8, 8), r"layer '0' expects 3 channels, its input has shape \(4, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), "a batch of no images reached layer '0'"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), "the input of layer '0' is torch.int64"),
    ],
    ids=["one channel", "empty", "integer"],
)
def test_inputs_at_inference(x: Tensor, message: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    block = inference.apply_statistics(model, inference.TestBatch())
    with unchanged(model), pytest.raises(ValueError, match=message), block:
        model(x)
