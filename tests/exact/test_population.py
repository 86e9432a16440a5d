"""Exact statistics: against the slow twin in float64, against full-batch forwards, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab import Statistics, diagnose, gap, population_statistics, recalibrate, running_statistics, using
from bnlab.batches import map_batch
from bnlab.moments import Moments, compare_moments
from tests import references
from tests.exact.zoo import conv, make_cases
from tests.helpers import AddsItsCalls, images, plain, randomized, residual, run_two_ranks, unchanged

CASES = make_cases()


def find_difference(found: Statistics, expected: Any) -> float:
    """The largest, of a mean in σ and of a variance relative."""
    assert set(found) == set(expected)
    moments = {name: Moments(m.count, m.mean, m.var) for name, m in expected.items()}
    assert all(found[name].count == m.count for name, m in moments.items())
    return max(max(compare_moments(m, found[name])) for name, m in moments.items())


def widen(batch: Any) -> Any:
    return map_batch(lambda leaf: leaf.double() if isinstance(leaf, Tensor) else leaf, batch)


def measure_in_float64(model: nn.Module, batches: list[Any], **options: Any) -> Statistics:
    return population_statistics(copy.deepcopy(model).double(), widen(batches), strategy="layerwise", **options)


@pytest.mark.parametrize("name", CASES)
def test_breadth_first_equals_the_layerwise_twin_in_float64(name: str) -> None:
    case = CASES[name]
    twin = measure_in_float64(case.model, case.batches, forward=case.forward)
    with unchanged(case.model), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = population_statistics(case.model, case.batches, forward=case.forward)

    messages = [str(warning.message) for warning in told]
    assert all(case.warns in message for message in messages)
    assert bool(messages) == bool(case.warns)
    # Single images of a few pixels have variances of a few values; autocast computes in bfloat16.
    tolerance = 0.05 if name == "autocast" else 1e-5
    assert find_difference(found, twin) <= tolerance
    assert found.unseen == twin.unseen


@pytest.mark.parametrize("name", ["sequential", "residual", "branches", "concatenation", "features", "depthwise"])
def test_float64_equals_a_full_batch_forward(name: str) -> None:
    case = CASES[name]
    found = population_statistics(copy.deepcopy(case.model).double(), widen(case.batches))

    assert find_difference(found, references.full_batch_population(case.model, torch.cat(case.batches))) <= 1e-9
    assert found.cost is not None
    assert found.cost.forwards == found.cost.batches == len(case.batches)

    pooled = population_statistics(copy.deepcopy(case.model).double(), widen(case.batches), upstream="batch")
    assert find_difference(pooled, references.batch_upstream_population(case.model, case.batches)) <= 1e-9


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("autocast", "data parallel")])
def test_an_ordinary_evaluation_gives_each_layer_what_was_measured(name: str) -> None:
    case = CASES[name]
    model = copy.deepcopy(case.model).double()
    batches = widen(case.batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = population_statistics(model, batches, forward=case.forward)
    with using(model, found), torch.no_grad():
        seen = references.moments_of_inputs(model, list(found), batches, case.forward)

    assert find_difference(found, seen) <= 1e-5


@pytest.mark.parametrize("share", [pytest.param(0.5, marks=pytest.mark.slow), 0.1])
@pytest.mark.parametrize("name", ["residual", "branches", "siamese", "by content", "several sizes", "in a loop"])
def test_less_memory_gives_the_same(name: str, share: float) -> None:
    case = CASES[name]
    batches = [batch for batch in case.batches for _ in range(8)]
    whole = population_statistics(case.model, batches)

    assert whole.cost is not None

    alone = population_statistics(case.model, batches[-1:]).cost.peak_bytes  # type: ignore[union-attr]
    limit = max(int(whole.cost.peak_bytes * share), 2 * alone)
    found = population_statistics(case.model, batches, memory=limit)
    assert find_difference(found, whole) <= 1e-5
    assert found.cost is not None
    assert found.cost.peak_bytes <= limit

    layer_by_layer = len(batches) * (len(found) + 1)
    assert whole.cost.forwards < found.cost.forwards <= found.cost.passes * layer_by_layer


def test_shared_layers_settle_in_as_many_passes_as_there_are_layers_and_two() -> None:
    found = population_statistics(CASES["siamese"].model, CASES["siamese"].batches)
    assert found.cost is not None
    assert 2 < found.cost.passes <= len(found) + 2


class Feedback(nn.Module):
    """A larger mean makes the next one smaller by more than that: plain iteration does not settle."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(6 * self.norm(x))


class Switch(nn.Module):
    """A positive running mean makes the mean negative, and a negative one positive: there is no fixed point."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + 10 * torch.sign(self.norm(torch.zeros_like(x))))


def test_damping_finds_what_plain_iteration_does_not() -> None:
    model = Feedback().double()
    first = torch.randn(64, 1).double() + 1
    second = torch.randn(64, 1).double() + 1
    data = [first, second]
    found = population_statistics(model, data)
    with using(model, found), torch.no_grad():
        seen = references.moments_of_inputs(model, list(found), data, None)

    assert found.cost is not None
    assert found.cost.passes > 5
    assert find_difference(found, seen) <= 1e-5


def test_what_never_settles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"do not settle; measure the others"):
        population_statistics(Switch(), [torch.randn(64, 1), torch.randn(64, 1)])


def list_shared(call: Callable[..., Any], other: Callable[..., Any]) -> list[str]:
    """The keywords that both take, in the order of the first."""
    return [name for name in inspect.signature(call).parameters if name in inspect.signature(other).parameters]


@pytest.mark.parametrize(("one", "other"), itertools.combinations((population_statistics, diagnose, recalibrate), 2))
def test_keywords_that_calls_share_come_in_one_order(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    shared = list_shared(one, other)
    assert {"forward", "inputs", "max_images", "progress"} <= {*shared}
    assert shared == list_shared(other, one)


@pytest.mark.parametrize("sigma", [0.01, 10.0])
@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_far_from_zero(offset: float, sigma: float) -> None:
    data = [batch * sigma + offset for batch in images(8, 8, 5)]
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    expected = references.merge(widen(data))
    for options in ({}, {"upstream": "batch"}, {"strategy": "layerwise"}, {"memory": "50KB"}):
        found = population_statistics(model, data, **options)  # type: ignore[arg-type]

        assert max(compare_moments(Moments(*expected), found["0"])) <= 1e-4


def test_some_layers_are_measured_under_the_buffers_of_others() -> None:
    model = residual().double()
    data = widen(images(8, 5))
    found = population_statistics(model, data, layers=["4.bn2"])
    seen = references.moments_of_inputs(model.eval(), ["4.bn2"], data, None)

    assert list(found) == ["4.bn2"]
    assert find_difference(found, seen) <= 1e-12


def test_forwards_that_write_into_their_batch_write_into_a_copy() -> None:
    data = [torch.randn(8, 3) for _ in range(3)]
    before = copy.deepcopy(data)
    population_statistics(nn.Sequential(nn.BatchNorm1d(3)), data, forward=lambda model, batch: model(batch.mul_(2)))

    assert all(torch.equal(batch, value) for batch, value in zip(data, before, strict=True))


def test_a_loader_draws_no_number_of_the_callers() -> None:
    model = plain()
    data = TensorDataset(torch.cat(images(8, 8, 5)))
    loader = DataLoader(data, batch_size=9, shuffle=True)
    for options in ({}, {"upstream": "batch"}, {"max_images": "auto", "tolerance": 1.0}):
        with unchanged(model):
            population_statistics(model, loader, **options)


def test_measuring_again_gives_the_same_to_the_bit() -> None:
    first, second = (population_statistics(residual(), images(8, 8, 5)) for _ in range(2))
    assert all(torch.equal(first[name].mean, second[name].mean) for name in first)
    assert all(torch.equal(first[name].var, second[name].var) for name in first)


def test_a_check_that_fails_says_where_and_by_how_much() -> None:
    case = CASES["features in a hook"]
    with pytest.warns(RuntimeWarning, match="another input"):
        found = population_statistics(case.model, case.batches[:2])

    assert found.check is not None
    assert not found.check.held
    assert found.check.held_layer_by_layer
    assert found.check.is_exact
    assert found.check.layer == "c.1"
    assert found.check.off > 0.01
    assert "check failed at c.1, measured layer by layer" in repr(found)


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
def test_statistics_that_fail_their_check_layer_by_layer_too_are_not_called_exact(strategy: str) -> None:
    with pytest.warns(RuntimeWarning, match="draw it in the batches"):
        found = population_statistics(nn.Sequential(AddsItsCalls(), nn.BatchNorm2d(3)), images(8, 8), strategy=strategy)

    assert found.check is not None
    assert not found.check.held
    assert not found.check.is_exact
    assert "check failed at 1, so not exact" in repr(found)


class Scaled(nn.Module):
    """A part of the input that a batch sets for its forward, as the width of a slimmable network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.scale = 1.0
        self.scales = [1.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale * self.scales[0])


@pytest.mark.parametrize("scales", [(1.0, 0.25, 1.0), (0.5, 1.0, 1.0), (1.0, 1.0, 0.25, 1.0)])
@pytest.mark.parametrize("in_a_list", [False, True])
def test_state_that_differs_from_batch_to_batch(scales: tuple[float, ...], in_a_list: bool) -> None:
    """An attribute is each forward's own; what it cannot have alone is noticed, and measured the slow way."""

    def run(model: Any, batch: tuple[Tensor, float]) -> None:
        x, scale = batch
        if in_a_list:
            model.scales[0] = scale
        else:
            model.scale = scale
        model(x)

    batches = [*zip((x.flatten(1)[:, :4] for x in images(*[64] * len(scales))), scales, strict=True)]
    expected = population_statistics(Scaled(), batches, forward=run, strategy="layerwise")
    noticed = pytest.warns(RuntimeWarning, match="keeps state between its layers")
    with noticed if in_a_list else contextlib.nullcontext():
        found = population_statistics(Scaled(), batches, forward=run)

    assert gap(expected, found)["var_gap"].max() < 1e-6


def test_a_forward_that_raises_leaves_the_model_as_it_was() -> None:
    model = residual()
    calls = [0]

    def fail(model: nn.Module, batch: Tensor) -> None:
        model(batch)
        calls[0] += 1
        if calls[0] > 3:
            raise KeyError("mine")

    for options in ({}, {"strategy": "layerwise"}, {"upstream": "batch"}):
        calls[0] = 0
        with unchanged(model), pytest.raises(KeyError, match="mine"):
            population_statistics(model, images(8, 8, 5, 8), forward=fail, **options)  # type: ignore[arg-type]


def test_a_caller_s_random_numbers_go_on() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    with unchanged(model := plain().train()):
        population_statistics(model, images(8, 5))


def test_gradients_are_not_touched() -> None:
    model = residual().train()
    (x,) = images(8)
    loss = model(x).sum()
    population_statistics(model, images(8, 5))
    loss.backward()  # the buffers that it saved have been put back

    assert all(parameter.grad is not None for parameter in model.parameters())


def test_max_images_stops_after_the_batch_that_reaches_it() -> None:
    read = []

    def loader() -> Any:
        for batch in images(4, 4, 4, 4):
            read.append(len(batch))
            yield batch

    found = population_statistics(plain(), loader(), max_images=6)

    assert read == [4, 4]
    assert found.cost is not None
    assert found.cost.images == 8


def test_standard_errors_are_those_of_the_images_where_each_is_a_batch() -> None:
    model = randomized(nn.Sequential(nn.BatchNorm2d(3), conv(3, 4)))
    data = torch.cat(images(9, 9, 6)).split(1)
    for upstream in ("population", "batch"):
        found = population_statistics(model, data, upstream=upstream, standard_errors=True)
        assert found.standard_errors is not None
        mean, var = references.sampling_errors(torch.cat(data))
        torch.testing.assert_close(found.standard_errors["0"][0], mean, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.standard_errors["0"][1], var, rtol=1e-4, atol=0)


def test_auto_reads_until_the_errors_are_within_the_tolerance() -> None:
    data = torch.randn(4096, 3, 8, 8, generator=torch.Generator().manual_seed(0)).split(64)
    found = population_statistics(plain(), data, max_images="auto", tolerance=0.02)

    assert found.cost is not None
    assert found.cost.images in (512, 1024, 2048)
    assert found.standard_errors

    everything = population_statistics(plain(), data[:5], max_images="auto", tolerance=1e-9)
    assert everything.cost is not None
    assert everything.cost.images == 320


def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    run_two_ranks(
        """
import warnings
from bnlab import population_statistics
from bnlab.moments import compare_moments
from tests.exact.zoo import make_cases
from tests.helpers import images, residual
data = images(8, 8, 5, 7)
group = dist.group.WORLD
for share in (data[rank::2], data if rank else []):
    for options in ({}, {"upstream": "batch"}, {"strategy": "layerwise"}, {"standard_errors": True}):
        whole = population_statistics(residual(), data, **options)
        found = population_statistics(residual(), share, group=group, **options)
        assert list(found) == list(whole)
        assert max(max(compare_moments(whole[n], found[n])) for n in whole) < 1e-6
case = make_cases()["features in a hook"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    whole = population_statistics(case.model, case.batches)
    found = population_statistics(case.model, case.batches[rank::2], group=group)
assert max(max(compare_moments(whole[n], found[n])) for n in whole) < 1e-6
try:
    population_statistics(residual(), [data[0] * (float("nan") if rank else 1)], group=group)
    raise SystemExit("not refused")
except ValueError as error:
    assert "NaN" in str(error)
""",
        tmp_path,
    )


def test_what_is_refused_and_how() -> None:
    model = plain()
    data = images(8, 5)
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3)))
    for arguments, options, error, message in (
        ((nn.Linear(3, 3), data), {}, ValueError, "no BatchNorm layer with running statistics in Linear"),
        ((nn.InstanceNorm2d(3), data), {}, ValueError, r"1 InstanceNorm2d skipped"),
        (("model", data), {}, TypeError, "expected a torch.nn.Module"),
        ((scripted, data), {}, ValueError, "TorchScript"),
        ((nn.LazyBatchNorm2d(), data), {}, ValueError, "not built yet"),
        ((plain().to("meta"), data), {}, ValueError, "meta device"),
        ((model, []), {}, ValueError, "batches is empty"),
        ((model, data[0]), {}, TypeError, "pass an iterable of batches"),
        ((model, data), {"layers": ["2"]}, ValueError, "no BatchNorm layer"),
        ((model, data), {"layers": []}, ValueError, "layers is empty"),
        ((model, data), {"upstream": "both"}, ValueError, "choose 'population' or 'batch'"),
        ((model, data), {"max_images": 0}, ValueError, "pass at least 1"),
        ((model, data), {"max_images": "auto"}, ValueError, "tolerance=None"),
        ((model, data), {"memory": "some"}, ValueError, "4GiB"),
        ((model, data), {"memory": 1000}, ValueError, "pass smaller batches or raise memory="),
        ((model, data), {"device": "nowhere"}, ValueError, "cannot be used here"),
        ((model, data), {"forward": 3}, TypeError, "pass a function of model and batch"),
        ((model, data), {"group": 3}, TypeError, "pass a process group"),
        ((model, [data[0], data[1] * np.inf]), {}, ValueError, "NaN or infinite values"),
        ((model, [data[0], data[1] * np.nan]), {"upstream": "batch"}, ValueError, "NaN or infinite values"),
        ((model, [data[0], data[1][:, :2]]), {}, RuntimeError, "expected input"),
        ((nn.BatchNorm2d(4), data), {}, ValueError, "expects 4 channels"),
        ((model, [data[0], data[0][:0]]), {}, ValueError, "leave empty batches out"),
        ((nn.BatchNorm1d(3), [torch.randn(1, 3)]), {}, ValueError, "one value per channel"),
        ((nn.BatchNorm1d(3), [torch.randn(1, 3)] * 2), {"upstream": "batch"}, ValueError, "use larger batches"),
    ):
        same = unchanged(model) if arguments[0] is model else contextlib.nullcontext()
        with same, pytest.raises(error, match=message):
            population_statistics(*arguments, **options)


def test_norms_that_somebody_has_written_are_named() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return x - self.get_buffer("running_mean").view(-1, 1, 1)

    with pytest.warns(RuntimeWarning, match="'0' keep running statistics"):
        population_statistics(nn.Sequential(OwnNorm(), nn.BatchNorm2d(3)), images(8, 5))
    with pytest.raises(ValueError, match="1 OwnNorm skipped"):
        population_statistics(OwnNorm(), images(8))


def test_writing_the_result_makes_the_network_consistent() -> None:
    model = residual()
    data = images(8, 8, 5)
    exact = population_statistics(model, data)
    exact.write_to(model)

    assert find_difference(population_statistics(model, data), exact) <= 1e-6
    assert torch.equal(running_statistics(model)["1"].mean, exact["1"].mean.float().double())
