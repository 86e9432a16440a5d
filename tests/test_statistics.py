"""Statistics as a value: read, written, used, saved."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from bnlab import Moments, Statistics, population_statistics, running_statistics, using
from bnlab.inference import Rule, TestBatch, applied
from bnlab.statistics import Layout
from tests.helpers import assert_equal_statistics, images, plain, randomized, residual, train, unchanged


def same(a: Statistics, b: Statistics) -> bool:
    """Bit for bit, counts of running averages (NaN) included."""
    return (list(a), a.eps, a.unseen) == (list(b), b.eps, b.unseen) and all(
        (a[k].count == b[k].count or math.isnan(a[k].count + b[k].count))
        and torch.equal(a[k].mean, b[k].mean)
        and torch.equal(a[k].var, b[k].var)
        for k in a
    )


def test_reading_and_writing_are_inverse() -> None:
    model, other = residual(), residual()
    train(model, images(4, 4))
    statistics = running_statistics(model)
    buffer = model[1].running_mean
    assert list(statistics) == ["1", *(f"{i}.{n}" for i in (3, 4) for n in ("shortcut.1", "bn1", "bn2"))]
    assert math.isnan(statistics["1"].count) and statistics["1"].mean.dtype == torch.float64
    train(model, images(4))
    assert not same(running_statistics(model), statistics)  # a copy, not a view
    statistics.write_to(model)
    assert same(running_statistics(model), statistics)
    assert model[1].running_mean is buffer and int(model[1].num_batches_tracked) == 3
    statistics.write_to(other)
    assert same(running_statistics(other), statistics)


def test_writing_some_layers_leaves_the_others() -> None:
    model = plain()
    old = running_statistics(model)
    Statistics({"4": Moments(9, torch.ones(12).double(), torch.ones(12).double())}, {"4": 1e-3}).write_to(model)
    new = running_statistics(model)
    assert torch.equal(new["1"].mean, old["1"].mean) and new["4"].mean.tolist() == [1.0] * 12


def test_a_buffer_in_half_precision() -> None:
    model = plain().half()
    statistics = running_statistics(model)
    statistics.write_to(model)
    assert same(running_statistics(model), statistics)


def test_using() -> None:
    model, x = plain(), images(5)[0]
    statistics = population_statistics(model, images(4, 4))
    expected = plain()
    statistics.write_to(expected)
    with unchanged(model), using(model, statistics) as lent:
        assert lent is model and not model.training
        assert torch.equal(model(x), expected.eval()(x))
    loss = model.eval()(x).sum()
    with using(model, statistics):
        model(x)
    loss.backward()  # what it has saved was not written into
    with unchanged(model), pytest.raises(ZeroDivisionError), using(model, statistics):
        raise ZeroDivisionError


class MergedInEval(nn.Conv2d):
    """An adapter of low rank that `train` merges into the weights, as loralib's do."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.adapter, self.is_merged = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1)), False

    def train(self, mode: bool = True) -> "MergedInEval":
        super().train(mode)
        if mode == self.is_merged:
            self.weight.data += -self.adapter.data if mode else self.adapter.data
            self.is_merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight + (0 if self.is_merged else self.adapter), self.bias)


class AveragedInEval(nn.Sequential):
    """Evaluates with other weights, which lie elsewhere."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.own = [parameter.data for parameter in self.parameters()]
        self.averages = [torch.ones_like(own) for own in self.own]

    def eval(self) -> "AveragedInEval":
        for parameter, average in zip(self.parameters(), self.averages, strict=True):
            parameter.data = average
        return super().eval()


def test_weights_that_are_exchanged_in_eval_mode_come_back() -> None:
    model = AveragedInEval(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).train()
    statistics = population_statistics(model, images(4))
    with unchanged(model), using(model, statistics):
        assert bool((model[0].weight == 1).all())
    assert all(bool((average == 1).all()) for average in model.averages)
    assert all(p.data_ptr() == own.data_ptr() for p, own in zip(model.parameters(), model.own, strict=True))


@pytest.mark.parametrize("in_block", [nn.Module.eval, nn.Module.train])
@pytest.mark.parametrize("rule", [None, TestBatch()])
def test_weights_that_are_merged_in_eval_mode_come_back(
    in_block: Callable[[nn.Module], object], rule: Rule | None
) -> None:
    model = nn.Sequential(MergedInEval(3, 6, 3), nn.BatchNorm2d(6)).train()
    batches = images(4, 4)
    statistics = population_statistics(model, batches)
    loss = model(batches[0]).square().sum()
    expected = copy.deepcopy(model).eval()
    statistics.write_to(expected)
    with unchanged(model), using(model, statistics) if rule is None else applied(model, rule):
        if rule is None:
            assert torch.equal(model(batches[0]), expected(batches[0]))
        in_block(model)
    loss.backward()
    with applied(model, TestBatch()):  # weights that are trained in the block stay
        model[0].weight.data[0] += 1
    trained = model[0].weight.detach() - expected.train()[0].weight.detach()
    assert torch.allclose(trained[0], torch.ones(3, 3, 3)) and trained[1:].abs().max() < 1e-6
    assert not model[0].is_merged


def test_what_a_block_makes_of_merged_weights_is_undone() -> None:
    model, x = nn.Sequential(MergedInEval(3, 6, 3), nn.BatchNorm2d(6)).eval(), images(4)[0]
    expected = model(x)
    with using(model, running_statistics(model)):
        model.train()
    torch.testing.assert_close(model(x), expected)
    assert model[0].is_merged


def test_merged_weights_that_share_memory_are_put_back() -> None:
    model = nn.Sequential(MergedInEval(3, 3, 3), nn.BatchNorm2d(3), MergedInEval(3, 3, 3)).train()
    model[2].weight = nn.Parameter(model[0].weight.data)
    before = model[0].weight.detach().clone()
    with using(model, running_statistics(model)):
        pass
    torch.testing.assert_close(model[0].weight.detach(), before)


def test_weights_are_put_back_from_averages_that_have_not_begun() -> None:
    model = AveragedInEval(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).train()
    model.averages = [torch.full_like(own, torch.nan) for own in model.own]
    before = model[0].weight.detach().clone()
    with using(model, running_statistics(model)):
        pass
    assert torch.equal(model[0].weight, before)


def test_parts_on_the_meta_device_are_passed_over() -> None:
    model = AveragedInEval(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(2, 2, device="meta")).train()
    before = model[0].weight.detach().clone()
    with using(model, running_statistics(model)):
        assert torch.equal(model[0].weight, model.averages[0])
    assert torch.equal(model[0].weight, before) and model[2].weight.is_meta


WRITERS: dict[str, Callable[[nn.Module], object]] = {
    "trained": lambda model: model.train()(images(4)[0]),
    "loaded": lambda model: model.load_state_dict(randomized(residual(), seed=5).state_dict()),
    "written": lambda model: running_statistics(randomized(residual(), seed=5)).write_to(model),
    "replaced": lambda model: setattr(model.get_submodule(next(iter(running_statistics(model)))), "running_var", None),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_while_statistics_are_in_use_is_told(writer: str) -> None:
    model = randomized(residual())
    statistics = running_statistics(model)
    own = copy.deepcopy(model.state_dict())
    matches = pytest.warns(RuntimeWarning, match=r"written the running buffers of .* in the block")
    with matches as told, using(model, statistics):
        WRITERS[writer](model)
    assert told[0].filename == __file__
    assert same(running_statistics(model), statistics)
    with warnings.catch_warnings(), using(model, statistics):
        warnings.simplefilter("error")
        model.load_state_dict(own)  # as at the end of an episode
        model(images(4)[0])


def test_frame() -> None:
    frame = population_statistics(plain(), images(4, 4)).to_frame()
    assert list(frame) == ["layer", "depth", "channel", "count", "mean", "var", "eps"]
    assert frame.groupby("layer", sort=False)["channel"].count().to_dict() == {"1": 6, "4": 12}
    assert frame.groupby("layer")[["depth", "count", "eps"]].first().to_dict("list") == {
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


def test_files_that_say_what_they_are_of(tmp_path: Path) -> None:
    path, statistics = tmp_path / "s.safetensors", running_statistics(plain())
    statistics.save(path, {"run": "a"})
    assert same(Statistics.load(path, {"run": "a"}), statistics) and same(Statistics.load(path), statistics)
    with pytest.raises(ValueError, match=r"s.safetensors: is of run a, expected b"):
        Statistics.load(path, {"run": "b"})
    with pytest.raises(ValueError, match="about: the file has layers by itself"):
        statistics.save(path, {"layers": "1"})


def test_files_that_are_not_statistics(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(FileNotFoundError, match=r"s\.safetensors"):
        Statistics.load(path)
    running_statistics(plain()).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-5], whole[:-5] + bytes(5), whole.replace(b"eps", b"epz"), b"foreign" * 9):
        if damaged != whole:
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"s\.safetensors: damaged"):
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
        (plain(width=5), good(), ValueError, "layer '1' has 5 channels, found 6"),
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
    assert flat.shape == (2, 18) and layout.channel_eps.tolist() == [1e-5] * 6 + [1e-3] * 12
    assert same(layout.unflatten(flat), statistics)


def test_buffers_that_share_memory() -> None:
    model = plain()
    found = population_statistics(model, images(4, 3))
    first, second = model[1], model[4]
    memory = torch.zeros(20)
    first.running_mean, second.running_mean = memory[:6], memory[5 : 5 + second.num_features]
    with unchanged(model), pytest.raises(ValueError, match="layers '1' and '4' share memory"):
        found.write_to(model)
    with using(model, found):
        for name, moments in running_statistics(model).items():
            assert torch.allclose(moments.mean, found[name].mean)
    running_statistics(model).write_to(model)  # what they share has one value


def test_one_value_for_all_channels() -> None:
    model = plain()
    model[1].running_mean = torch.zeros(1).expand(6)
    with pytest.raises(ValueError, match="layers '1' and '1' share memory"):
        population_statistics(model, images(4, 3)).write_to(model)


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


def test_buffers_that_were_made_in_inference_mode() -> None:
    """Torch lets them be written in inference mode only."""
    with torch.inference_mode():
        model = plain().eval()
        own = running_statistics(model)
    found = population_statistics(model, images(4))
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"write_to: the running buffers of '1'.*in torch\.inference_m"),
    ):
        found.write_to(model)
    with using(model, found), torch.no_grad():
        assert_equal_statistics(running_statistics(model), found)
    assert_equal_statistics(running_statistics(model), own)
    with torch.inference_mode():
        found.write_to(model)
    assert_equal_statistics(running_statistics(model), found)
