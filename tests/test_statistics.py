"""Statistics as a value: read, written, used, saved."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from bnlab import Moments, Statistics, population_statistics, running_statistics, using
from bnlab.layout import Layout
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


def test_writing_some_layers_leaves_the_others() -> None:
    model = plain()
    old = running_statistics(model)
    ones = torch.ones(12).double()
    statistics = Statistics({"4": Moments(9, ones, ones)}, {"4": 1e-3})

    statistics.write_to(model)

    new = running_statistics(model)

    assert torch.equal(new["1"].mean, old["1"].mean)
    assert new["4"].mean.tolist() == [1.0] * 12


def test_a_buffer_in_half_precision() -> None:
    model = plain().half()
    statistics = running_statistics(model)
    statistics.write_to(model)

    assert same(running_statistics(model), statistics)


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
    loss = model.eval()(x).sum()
    with using(model, statistics):
        model(x)
    loss.backward()  # what it has saved was not written into
    with unchanged(model), pytest.raises(ZeroDivisionError), using(model, statistics):
        raise ZeroDivisionError


def copy_gradient(model: nn.Module) -> torch.Tensor:
    """The gradient of the first layer's weight."""
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    return gradient.clone()


def test_a_loss_of_a_block_has_the_gradients_of_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(64, 4)
    _ = None
    statistics = population_statistics(model, [x])
    with using(model, statistics):
        model(x).square().sum().backward()
        expected = copy_gradient(model)
        model.zero_grad()
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
        assert same(Statistics.load(tmp_path / "s.safetensors"), statistics)

    assert isinstance(Statistics.load(tmp_path / "s.safetensors")["a"].count, int)


def test_files_that_are_not_statistics(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(FileNotFoundError, match=r"s\.safetensors"):
        Statistics.load(path)
    running_statistics(plain()).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-5], b"foreign" * 9):
        if damaged != whole:
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"s\.safetensors: cannot be read"):
                Statistics.load(path)


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
        (nn.Linear(1, 1), good(), ValueError, "no BatchNorm layer with running statistics in Linear"),
        ("model", good(), TypeError, "expected a torch.nn.Module, found str"),
    ],
)
def test_bad_input(model: nn.Module, statistics: Statistics, error: type[Exception], message: str) -> None:
    with unchanged(model), pytest.raises(error, match=f"write_to: {message}"):
        statistics.write_to(model)
    with unchanged(model), pytest.raises(error, match=f"using: {message}"), using(model, statistics):
        pass


def test_wrong_kinds() -> None:
    with pytest.raises(TypeError, match=r"running_statistics: expected a torch\.nn\.Module, found dict"):
        running_statistics({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="using: statistics is a dict"), using(plain(), {}):  # type: ignore[arg-type]
        pass


def test_layout() -> None:
    statistics = good()
    layout = Layout.of(statistics)
    flat = layout.flatten(statistics)

    assert flat.shape == (2, 18)
    assert layout.channel_eps.tolist() == [1e-5] * 6 + [1e-3] * 12
    assert same(layout.unflatten(flat), statistics)


@pytest.mark.parametrize("key", ["mean", "var"])
def test_values_beyond_the_type_of_the_buffers(key: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).half()
    values = {"mean": torch.zeros(2, dtype=torch.float64), "var": torch.ones(2, dtype=torch.float64)}
    statistics = Statistics({"0": Moments(8, **values | {key: values["var"] * 1e5})}, {"0": 1e-5})
    with unchanged(model), pytest.raises(ValueError, match=r"'0' has a value beyond torch\.float16"):
        statistics.write_to(model)
    with pytest.raises(ValueError, match=r"beyond torch\.float16"), using(model, statistics):
        pass


@pytest.mark.parametrize("var", [torch.ones(1), torch.ones(2, 1), [1.0, 1.0]])
def test_moments_that_do_not_fit_together(var: object) -> None:
    with pytest.raises(ValueError, match="mean and var of layer '0' are no tensors of one length"):
        Statistics({"0": Moments(8, torch.zeros(2), var)}, {"0": 1e-5})  # type: ignore[arg-type]
