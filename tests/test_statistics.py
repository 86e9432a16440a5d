"""Statistics as a value: read, written, used, saved."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from bnlab import Moments, Statistics, gap, population_statistics, record, replay, running_statistics, using
from bnlab.estimators import Cumulative
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
    with pytest.raises(RuntimeError, match="inplace operation"):
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


# A model, a value in layer 4 of the statistics of `plain`, and what is named
REFUSED: dict[str, tuple[Callable[[], Any], dict[str, float], str]] = {
    "another model's": (residual, {}, "'4'"),
    "fewer channels": (lambda: plain(width=5), {}, "layer '1' .*5 channels, .* 6"),
    "NaN": (plain, {"mean": math.nan}, "layer '4' .*NaN"),
    "infinite": (plain, {"var": math.inf}, "layer '4' .*infinite"),
    "negative": (plain, {"var": -0.1}, "layer '4' .*negative"),
    "a mean beyond float16": (lambda: plain().half(), {"mean": 1e5}, r"layer '4' .*torch\.float16"),
    "a variance beyond float16": (lambda: plain().half(), {"var": 1e5}, r"layer '4' .*torch\.float16"),
    "no batch norm": (lambda: nn.Linear(1, 1), {}, "BatchNorm .*Linear"),
    "no model": (lambda: "model", {}, r"torch\.nn\.Module, .*str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(case: str) -> None:
    make_model, values, named = REFUSED[case]
    model = make_model()
    statistics = running_statistics(plain())
    for key, value in values.items():
        getattr(statistics["4"], key)[3] = value

    with unchanged(model), pytest.raises((ValueError, TypeError), match=f"write_to: .*{named}"):
        statistics.write_to(model)
    with unchanged(model), pytest.raises((ValueError, TypeError), match=f"using: .*{named}"), using(model, statistics):
        pass


NOTHING: Any = {}
ONE: Any = 1


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: running_statistics(NOTHING), TypeError, r"running_statistics: .*torch\.nn\.Module, .*dict"),
        (lambda: using(plain(), NOTHING).__enter__(), TypeError, "using: .*dict"),
        (lambda: Statistics({}, {}), ValueError, "no layers"),
        (lambda: Statistics({"0": ONE}, {"0": 1e-5}), TypeError, "'0' .*int"),
        (lambda: Statistics({"0": Moments(8, torch.zeros(2), torch.ones(2, 1))}, {}), ValueError, "no tensors"),
        (lambda: Statistics({"0": Moments(8, torch.zeros(2), torch.ones(2))}, {}), ValueError, "'0' .*eps"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Callable[[], object], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
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
    statistics = running_statistics(model)
    teacher = Statistics({"module.net": Moments(8, torch.ones(3).double(), torch.ones(3).double())}, statistics.eps)

    teacher.write_to(model)

    assert model.get_buffer("net.running_mean").eq(0).all()
    assert model.get_buffer("module.net.running_mean").eq(1).all()
    assert [*gap(statistics, running_statistics(model))["mean_gap"].round(3)] == [0, 1]
    with pytest.raises(ValueError, match="'net'"):
        statistics.write_to(nn.DataParallel(model))
