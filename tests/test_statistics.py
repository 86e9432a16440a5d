"""Statistics as a value: read, written, used, saved."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from bnlab import Moments, Statistics, population_statistics, record, replay, running_statistics, using
from bnlab.estimators import Cumulative
from bnlab.model.layers import match_names
from tests.helpers import images, plain, residual, train, unchanged


def same(a: Statistics, b: Statistics) -> bool:
    """Bit for bit, counts of running averages (NaN) included."""
    if (list(a), a.eps, a.unseen) != (list(b), b.eps, b.unseen):
        return False
    return all(same_moments(moments, b[name]) for name, moments in a.items())


def same_moments(a: Moments, b: Moments) -> bool:
    neither_has_a_count = math.isnan(a.count) and math.isnan(b.count)
    same_counts = a.count == b.count or neither_has_a_count
    return same_counts and torch.equal(a.mean, b.mean) and torch.equal(a.var, b.var)


def test_reading_and_writing_are_inverse() -> None:
    model, other = residual(), residual()
    train(model, images(4, 4))
    statistics = running_statistics(model)
    buffer = model.get_buffer("1.running_mean")

    assert list(statistics) == ["1", *(f"{i}.{n}" for i in (3, 4) for n in ("shortcut.1", "bn1", "bn2"))]
    assert math.isnan(statistics["1"].count)
    assert statistics["1"].mean.dtype == torch.float64

    train(model, images(4))
    assert not same(running_statistics(model), statistics)  # a copy, not a view

    statistics.write_to(model)
    assert same(running_statistics(model), statistics)
    assert model.get_buffer("1.running_mean") is buffer
    assert int(model.get_buffer("1.num_batches_tracked")) == 3

    statistics.write_to(other)
    assert same(running_statistics(other), statistics)


def test_some_layers_are_written_and_read_as_they_are_also_in_half_precision() -> None:
    model = plain().half()
    old = running_statistics(model)
    ones = torch.ones(12).double()
    statistics = Statistics({"4": Moments(9, ones, ones)}, {"4": 1e-3})

    statistics.write_to(model)

    new = running_statistics(model)
    assert same_moments(new["1"], old["1"])
    assert new["4"].mean.tolist() == [1.0] * 12
    assert new.eps == {"1": 1e-5, "4": 1e-3}
    new.write_to(model)
    assert same(running_statistics(model), new)


def test_using() -> None:
    model = plain()
    x = images(5)[0]
    statistics = population_statistics(model, images(4, 4))
    expected = plain()
    statistics.write_to(expected)
    with unchanged(model), using(model, statistics) as lent:
        assert lent is model
        assert not model.training
        assert torch.equal(model(x), expected.eval()(x))
    with unchanged(model), pytest.raises(ZeroDivisionError), using(model, statistics):
        raise ZeroDivisionError


def copy_gradient(model: nn.Module) -> torch.Tensor:
    """The gradient of the first layer's weight, which is then forgotten."""
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    model.zero_grad()
    return gradient


def test_a_loss_of_a_block_has_the_gradients_of_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(64, 4)
    statistics = population_statistics(model, [x])
    plain_loss = model(x).square().sum()
    model(x).square().sum().backward()
    of_buffers = copy_gradient(model)
    with using(model, statistics):
        model(x).square().sum().backward()
        expected = copy_gradient(model)
        plain_loss.backward()  # what it has saved is not written into
        assert torch.equal(copy_gradient(model), of_buffers)
        loss = model(x).square().sum()
    loss.backward()
    assert torch.equal(copy_gradient(model), expected)

    loss = model(x).square().sum()
    statistics.write_to(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frame() -> None:
    frame = population_statistics(plain(), images(4, 4)).to_frame()

    assert list(frame) == ["layer", "depth", "channel", "count", "mean", "var", "eps"]
    layers = frame.groupby("layer", sort=False)
    assert layers["channel"].count().to_dict() == {"1": 6, "4": 12}
    assert layers[["depth", "count", "eps"]].first().to_dict("list") == {
        "depth": [1, 2],
        "count": [512.0, 128.0],
        "eps": [1e-5, 1e-3],
    }
    assert isinstance(running_statistics(plain()).to_frame(), pd.DataFrame)


def test_save_and_load(tmp_path: Path) -> None:
    measured = population_statistics(plain(), images(4, 4))
    shared = torch.zeros(2).double()
    for statistics in (
        running_statistics(residual()),
        measured,
        Statistics(measured, measured.eps, unseen=["head"]),
        Statistics({"a": Moments(3, shared, shared)}, {"a": 0.1}),
    ):
        statistics.save(tmp_path / "s.safetensors")
        loaded = Statistics.load(tmp_path / "s.safetensors")
        assert same(loaded, statistics)
        torch.testing.assert_close(loaded.weights, statistics.weights, rtol=0, atol=0)

    assert isinstance(Statistics.load(tmp_path / "s.safetensors")["a"].count, int)


def good() -> Statistics:
    return running_statistics(plain())


def with_value(key: str, value: float) -> Statistics:
    statistics = good()
    getattr(statistics["4"], key)[3] = value
    return statistics


@pytest.mark.parametrize(
    ("model", "statistics", "error", "message"),
    [
        (residual(), good(), ValueError, "the model has no batch-norm layer '4'; were these another model's"),
        (plain(width=5), good(), ValueError, "layer '1' has 5 channels, these statistics 6"),
        (plain(), with_value("mean", math.nan), ValueError, "layer '4' has a NaN, infinite or negative value"),
        (plain(), with_value("var", math.inf), ValueError, "layer '4' has a NaN, infinite or negative value"),
        (plain(), with_value("var", -0.1), ValueError, "layer '4' has a NaN, infinite or negative value"),
        (plain().half(), with_value("mean", 1e5), ValueError, r"layer '4' has a value beyond torch\.float16"),
        (plain().half(), with_value("var", 1e5), ValueError, r"layer '4' has a value beyond torch\.float16"),
        (nn.Linear(1, 1), good(), ValueError, "no BatchNorm layer with running statistics in Linear"),
        ("model", good(), TypeError, "expected a torch.nn.Module, found str"),
    ],
)
def test_bad_input(model: nn.Module, statistics: Statistics, error: type[Exception], message: str) -> None:
    with unchanged(model), pytest.raises(error, match=f"write_to: {message}"):
        statistics.write_to(model)
    with unchanged(model), pytest.raises(error, match=f"using: {message}"), using(model, statistics):
        pass


NOTHING: Any = {}
ONE: Any = 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: running_statistics(NOTHING), TypeError, "running_statistics: expected a torch.nn.Module, found dict"),
        (lambda: using(plain(), NOTHING).__enter__(), TypeError, "using: statistics is a dict"),
        (lambda: Statistics({}, {}), ValueError, "no layers"),
        (lambda: Statistics({"0": ONE}, {"0": 1e-5}), TypeError, "layer '0' has a int; pass Moments"),
        (lambda: Statistics({"0": Moments(8, torch.zeros(2), torch.ones(2, 1))}, {}), ValueError, "are no tensors"),
        (lambda: Statistics({"0": Moments(8, torch.zeros(2), torch.ones(2))}, {}), ValueError, "'0' has no eps"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("call", ["population", "running", "moments", "replay"])
def test_what_is_made_in_inference_mode_can_be_written_into(call: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(8, 3, 8, 8)
    with record(model) as trace:
        model(x)
        trace.step()

    with torch.inference_mode():
        match call:
            case "population":
                statistics = population_statistics(model, [x, x + 1], standard_errors=True)
            case "running":
                statistics = running_statistics(model)
            case "replay":
                statistics = replay(trace, Cumulative())[1]
            case _:
                statistics = Statistics({"1": Moments.of(x)}, {"1": 1e-5})

    moments = statistics["1"]
    errors = (statistics.standard_errors or {}).get("1", ())
    for values in (moments.mean, moments.var, *errors):
        values.add_(1)  # of a tensor of inference mode a RuntimeError


def test_a_part_that_is_called_module_is_not_taken_for_a_wrapper() -> None:
    """A student `net` beside its teacher `module.net`: inside of DataParallel each name is another layer's."""
    model = nn.ModuleDict({"net": nn.BatchNorm2d(3), "module": nn.ModuleDict({"net": nn.BatchNorm2d(3)})})
    names = ["net", "module.net"]
    wrapped = [f"module.{name}" for name in names]

    assert match_names(names, names) == {name: name for name in names}
    assert match_names(["module.net"], names) == {"module.net": "module.net"}
    assert match_names(names, wrapped) == {}
    with pytest.raises(ValueError, match="no batch-norm layer 'net'"):
        running_statistics(model).write_to(nn.DataParallel(model))
