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
    MomentTrace,
    Statistics,
    decompose,
    inference,
    population_statistics,
    record,
    record_frozen,
    replay,
    running_statistics,
    using,
)
from bnlab.estimators import EMA, Window
from tests.helpers import images, plain, residual, unchanged


def _decompose(model: nn.Module, batches: Any, **more: Any) -> None:
    traces: dict[type[nn.Module], MomentTrace] = {Breaking: TRACE_OF_BREAKING}
    decompose(model, traces.get(type(model), TRACE), lambda step: copy.deepcopy(model.state_dict()), batches, **more)


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
    "batch upstream": partial(population_statistics, upstream="batch"),
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


NO_LISTS: list[Any] = [5, {"images": 1}, torch.zeros(4, 3, 8, 8)]
BATCHES: list[tuple[Any, str]] = [  # and what is said of them
    *((batches, f"batches is a {type(batches).__name__}; pass an iterable") for batches in NO_LISTS),
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


@pytest.mark.parametrize(
    "call", [MEASURING["population_statistics"], MEASURING["layerwise"], MEASURING["batch upstream"]]
)
def test_what_a_first_layer_cannot_take(call: Callable[[Any, Any], object]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    with unchanged(model), pytest.raises(ValueError, match="layer '0' expects 3 channels, its input has shape"):
        call(model, images(4, channels=2))
    with unchanged(model), pytest.raises(ValueError, match=r"the input of layer '0' is torch\.int64; convert"):
        call(model, [torch.zeros(4, 3, 8, 8, dtype=torch.int64)])


@measuring
def test_a_forward_that_is_no_function(call: Callable[..., object]) -> None:
    model = residual().train()
    with unchanged(model), pytest.raises(TypeError, match="forward is a int; pass a function of model and batch"):
        call(model, images(4), forward=5)


MODEL = residual()
OTHER = plain()
TRACE = record_frozen(MODEL, images(4, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: population_statistics(MODEL, images(4), layers="1"),
            TypeError,
            "layers='1'; pass a list of layer names",
        ),
        (lambda: population_statistics(MODEL, images(4), max_images=1.5), TypeError, "max_images=1.5; pass at least 1"),  # type: ignore[arg-type]
        (
            lambda: population_statistics(MODEL, images(4), max_images="auto", tolerance="0.1"),  # type: ignore[arg-type]
            TypeError,
            "tolerance='0.1'; pass a positive relative error",
        ),
        (lambda: population_statistics(MODEL, images(4), memory="9" * 400), ValueError, "pass bytes or a text such as"),
        (lambda: population_statistics(MODEL, images(4), layers=[["1"]]), ValueError, "layers has .'1'., which is no"),  # type: ignore[list-item]
        (lambda: population_statistics(MODEL, images(4), group="x"), TypeError, "group is a str; pass a process group"),
        (lambda: population_statistics(MODEL, images(4), device=3.5), ValueError, "device=3.5 cannot be used here "),  # type: ignore[arg-type]
        (lambda: population_statistics(MODEL, images(4), device="meta"), ValueError, "device='meta' holds no values"),
        (lambda: population_statistics(MODEL, MODEL), TypeError, "batches is a Sequential; pass an iterable"),
        (lambda: Moments.of([1.0, 2.0]), TypeError, "Moments.of: found a list"),  # type: ignore[arg-type]
        (lambda: Moments.empty(1).merge(3), TypeError, "merge: found a int; pass Moments"),  # type: ignore[arg-type]
        (lambda: Statistics({"a": 3}, {"a": 1e-5}), TypeError, "layer 'a' has a int; pass Moments"),  # type: ignore[dict-item]
        (lambda: decompose(MODEL, TRACE, {}, images(4)), TypeError, "weights is a dict; pass a function of the step"),  # type: ignore[arg-type]
        (lambda: record(MODEL, step="a").__enter__(), TypeError, "record: step='a'; pass the number of updates so far"),  # type: ignore[arg-type]
        (lambda: replay(TRACE, EMA(), 5), TypeError, "replay: steps is a int; pass a list of steps"),  # type: ignore[arg-type]
        (lambda: replay(TRACE, EMA(), [1.5]), TypeError, "replay: step 1.5 is not one of the trace"),  # type: ignore[list-item]
        (lambda: EMA("a"), TypeError, "momentum='a': it is the weight of the new batch"),  # type: ignore[arg-type]
        (lambda: EMA.from_decay("0.9"), TypeError, "decay='0.9': it is the weight of the old average"),  # type: ignore[arg-type]
        (lambda: Window(k=2.5), TypeError, "window: k=2.5; it counts batches"),  # type: ignore[arg-type]
        (lambda: inference.EvalNorm(batch_size=float("nan")), TypeError, "EvalNorm: batch_size=nan; it is 1 or more"),  # type: ignore[arg-type]
        (lambda: Statistics({}, {}), ValueError, "Statistics: no layers; pass moments of at least one"),
        (lambda: Statistics(running_statistics(MODEL), {}), ValueError, "Statistics: layer '1' has no eps"),
        (
            lambda: decompose(OTHER, TRACE, MODEL.state_dict, images(4)),  # type: ignore[arg-type]
            ValueError,
            "decompose: the trace has other layers or channels than the model",
        ),
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
@pytest.mark.parametrize("kind", [inference.TestBatch(), inference.PseudoSamples(n=0), inference.EvalNorm()])
def test_inputs_at_inference(kind: inference.TestTimeStatistics, x: Tensor, message: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).train()
    with unchanged(model), pytest.raises(ValueError, match=message), inference.apply_statistics(model, kind):
        model(x)
