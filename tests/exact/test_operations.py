"""The slow way by operations, and layers whose forward is run once to be read: what forwards keep, where they lead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import population_statistics, record
from tests import references
from tests.exact.test_arguments import run_in_a_thread
from tests.exact.zoo import Net
from tests.helpers import assert_moments, images, measure_difference

DATA = images(8, 8, 5)


class ByHand(nn.BatchNorm2d):
    """Normalizes 2·x, by arithmetic of its own."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return (2 * input - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()


class WithInstances(nn.BatchNorm2d):
    """Adds what each image alone gives, and what the batch gives without averages."""

    def forward(self, input: Tensor) -> Tensor:
        of_batch = F.batch_norm(input.relu() * 5, None, None, training=True)
        return super().forward(input) + F.instance_norm(input) + of_batch


class Counting(nn.BatchNorm2d):
    """What it gives depends on how often it was called since the model's forward began."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(input) * (2 if self.calls % 2 else -1)


def make(kind: Callable[[int], nn.Module], function: Any = None) -> Net:
    torch.manual_seed(0)
    return Net(function or (lambda net, x: net.b(net.n(x))), n=kind(3), b=nn.BatchNorm2d(3)).eval()


def measure_slowly(model: Any, data: list[Tensor]) -> dict[str, Any]:
    """Measure n, then b under it, by hooks on torch's own forward of all data at once, in float64."""
    found = {}
    model = model.double()
    for name in ("n", "b"):
        seen: list[Tensor] = []
        layer = model.get_submodule(name)
        handle = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for x in data:
                model(x.double())
        handle.remove()
        found[name] = references.merge(seen)
        layer.running_mean.copy_(found[name].mean)
        layer.running_var.copy_(found[name].var)
    return found


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
def test_operations_without_averages_are_none_of_a_layers(strategy: str) -> None:
    model = make(WithInstances)
    assert_moments(population_statistics(model, DATA, strategy=strategy)["n"], references.merge(DATA))


@pytest.mark.parametrize("statistic", ["exact", "precise"])
def test_reading_a_layer_leaves_what_it_counts(statistic: str) -> None:
    def begin_again(net: Any, x: Tensor) -> Any:
        net.n.calls = 0
        return net.b(net.n(x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(make(Counting, begin_again), [torch.cat(DATA)], statistic=statistic)

    assert_moments(found["b"], measure_slowly(make(Counting, begin_again), [torch.cat(DATA)])["b"], 1e-4)


def test_a_forward_may_write_into_an_object() -> None:
    class OfObject(nn.BatchNorm2d):
        def forward(self, input: Any) -> Any:
            input.features = super().forward(input.features)
            return input

    model = make(OfObject, lambda net, x: net.b(net.n(SimpleNamespace(features=x)).features))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(model, DATA)

    assert_moments(found["n"], references.merge(DATA))


def test_a_layer_in_another_thread_is_refused_the_slow_way() -> None:
    with pytest.raises(ValueError, match="it runs in another thread"):
        population_statistics(Net(run_in_a_thread, a=nn.BatchNorm2d(3)), DATA, strategy="layerwise")


def test_norms_of_another_model_are_no_mistake() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    model = make(nn.BatchNorm2d)
    expected = population_statistics(model, DATA, forward=lambda net, x: net(backbone(x)))
    found = population_statistics(model, DATA, forward=lambda net, x: net(backbone(x)), strategy="layerwise")

    assert measure_difference(found, expected) < 1e-6


def test_ways_that_take_turns_come_to_an_end() -> None:
    class TakesTurns(Net):
        turn = 0

    def take_turns(net: Any, x: Tensor) -> Any:
        net.turn += 1
        return net.n(x) if net.turn % 2 else net.b(x)

    model = TakesTurns(take_turns, n=nn.BatchNorm2d(3), b=nn.BatchNorm2d(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = population_statistics(model, DATA[:1], strategy="layerwise")

    assert {*found, *found.unseen} == {"n", "b"}


@pytest.mark.parametrize("factor", [3.0, 8.0])
def test_a_layer_that_depends_on_itself_settles_the_slow_way(factor: float) -> None:
    """Though each change is answered by a larger one."""
    model = Net(lambda net, x: net.n(factor * net.n(x) + 1), n=nn.BatchNorm2d(3, affine=False))
    expected = population_statistics(model, DATA)
    found = population_statistics(model, DATA, strategy="layerwise")

    assert found.check is not None and found.check.held
    assert measure_difference(found, expected) < 1e-4


def test_averages_that_have_diverged_spoil_no_other_way() -> None:
    model: Any = Net(
        lambda net, x: net.b((net.n if x.mean() < 0 else net.m)(x)),
        n=nn.BatchNorm2d(3), m=nn.BatchNorm2d(3), b=nn.BatchNorm2d(3),
    )  # fmt: skip
    model.m.running_mean.fill_(torch.nan)
    data = [x - x.mean() + shift for x, shift in zip(DATA, (-1, 1, -1), strict=True)]

    found = population_statistics(model, data, strategy="layerwise")
    assert measure_difference(found, population_statistics(model, data)) < 1e-6


class MaskedOrNot(nn.BatchNorm2d):
    """Takes the images whose first pixel is above 0; with none of them it gives its input."""

    def forward(self, input: Tensor) -> Tensor:
        keep = input[:, 0, 0, 0] > 0
        if not keep.any():
            return input
        output = input.clone()
        output[keep] = super().forward(input[keep])
        return output


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_batch_without_rows_is_no_entry(order: tuple[int, ...]) -> None:
    """Whichever comes first."""
    marked = [x.clone() for x in DATA]
    for x, sign in zip(marked, (1, -1, 1), strict=True):
        x[:, 0, 0, 0] = sign * (x[:, 0, 0, 0].abs() + 0.1)
    model = nn.Sequential(MaskedOrNot(3)).train()
    with warnings.catch_warnings(), record(model) as trace:
        warnings.simplefilter("error")
        for number in order:
            model(marked[number])

    kept = [marked[number] for number in order if number != 1]
    assert len(trace.layers["0"]) == 2
    means = torch.stack([x.mean((0, 2, 3)) for x in kept])
    torch.testing.assert_close(trace.layers["0"].moments[:, 0], means)


def test_averages_that_a_middle_batch_reads_are_measured() -> None:
    model = Net(
        lambda net, x: net.b(net.n.forward(x)) if x.mean() > 1 else net.b(x), n=nn.BatchNorm2d(3), b=nn.BatchNorm2d(3)
    )
    batches = [DATA[0], DATA[0] + 5, DATA[0]]
    with pytest.warns(RuntimeWarning, match="reads 'n' without calling"):
        found = population_statistics(model, batches)

    assert {*found} == {"n", "b"}
    assert found["n"].mean.allclose(batches[1].double().mean((0, 2, 3)))


def test_averages_that_are_read_under_the_result_alone_are_measured() -> None:
    """Under running averages a forward goes another way, on which it does not read them."""

    def run(net: Any, x: Tensor) -> Tensor:
        y = net.n(x)
        if y.mean() > 1:
            return y
        return F.batch_norm(y + 1, net.b.running_mean, net.b.running_var)

    model = make(nn.BatchNorm2d, run)
    with pytest.warns(RuntimeWarning, match="a forward reads 'b' without calling them"):
        found = population_statistics(model, [batch + 5 for batch in DATA])
    torch.testing.assert_close(found["b"].mean, 1 + model.get_parameter("n.bias").double(), atol=1e-5, rtol=0)


def test_a_layer_that_is_called_and_read_besides_is_measured_layer_by_layer() -> None:
    model = make(nn.BatchNorm2d, lambda net, x: net.b(net.n(x) + net.n.forward(2 * x)))
    with pytest.warns(RuntimeWarning, match="does not call layer 'n' as often"):
        found = population_statistics(model, DATA)
    slow = population_statistics(model, DATA, strategy="layerwise")
    assert measure_difference(found, slow) < 1e-5


def test_a_forward_that_puts_a_layer_into_train_mode_is_refused_the_slow_way_too() -> None:
    model = make(nn.BatchNorm2d, lambda net, x: net.b(net.n.train()(x)))
    with pytest.raises(ValueError, match="the forward changes the mode of layer 'n'"):
        population_statistics(model, DATA, strategy="layerwise")


class Sparse:
    """Values in an object, into which forwards write."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class OfObjects(nn.BatchNorm2d):
    def forward(self, given: Any) -> Any:
        given.values += 1
        return super().forward(given.values)


def test_a_norm_that_writes_into_an_object_is_read_on_a_copy() -> None:
    model = make(OfObjects, lambda net, x: net.b(net.n(Sparse(x.clone()))))
    found = population_statistics(model, DATA)
    torch.testing.assert_close(found["n"].mean, references.moments(torch.cat([x + 1 for x in DATA])).mean)
