"""Exact statistics of another model than the watched one, such as of averaged weights, from the training's images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import bnlab
from tests import references
from tests.helpers import images, measure_difference, plain, without_dropout

ROUNDING = 1e-12  # in float64, over some hundred sums
State = dict[str, Tensor]


def make_model() -> nn.Sequential:
    return without_dropout(plain()).double().train()


def make_batches(*sizes: int, seed: int = 1) -> list[Tensor]:
    return [batch.double() for batch in images(*sizes, seed=seed)]


BATCHES = make_batches(6, 8, 7)
HELD_OUT = make_batches(16, seed=5)[0]


class Beside(nn.Module):
    """Holds the model that is trained beside its average, and calls the average."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.online_model = model
        self.ema_model = copy.deepcopy(model)

    def forward(self, x: Tensor) -> Any:
        return self.ema_model(x)


MAKERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "AveragedModel": lambda model: AveragedModel(model, avg_fn=get_ema_avg_fn(0.5)),
    "with averaged buffers": lambda model: AveragedModel(model, avg_fn=get_ema_avg_fn(0.5), use_buffers=True),
    "a copy": copy.deepcopy,
    "beside": Beside,
    "parallel": lambda model: nn.DataParallel(copy.deepcopy(model)),
}


def select_average(averaged: Any) -> nn.Module:
    """Return the model in its wrapper."""
    for name in ("ema_model", "module"):
        averaged = getattr(averaged, name, averaged)
    return averaged


def train(model: nn.Module, batches: list[Tensor], averaged: nn.Module | None = None) -> None:
    """Train a model, and move an average of its weights half of the way to them after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        model.train()(batch).square().mean().backward()
        optimizer.step()
        if isinstance(averaged, AveragedModel):
            averaged.update_parameters(model)
        elif averaged is not None:
            pairs = zip(select_average(averaged).parameters(), model.parameters(), strict=True)
            for average, parameter in pairs:
                average.data.lerp_(parameter.data, 0.5)


def copy_state(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def are_equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def evaluate(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model.eval()(HELD_OUT)[:, 0].mean())


def evaluate_exactly(model: nn.Module) -> float:
    """By a copy, under the population of all batches."""
    model = copy.deepcopy(model)
    bnlab.population_statistics(model, BATCHES).write_to(model)
    return evaluate(model)


@pytest.fixture(params=list(MAKERS))
def trained(request: Any) -> tuple[nn.Module, bnlab.Watch, nn.Module]:
    """A watched model after three batches, and the average of its weights, made after it was watched."""
    model = make_model()
    watch = bnlab.watch(model, 21)
    averaged = MAKERS[request.param](model)
    train(model, BATCHES, averaged)
    return model, watch, averaged


Trained = tuple[nn.Module, bnlab.Watch, nn.Module]


def test_averaged_weights_are_measured_under_the_images_of_the_training(trained: Trained) -> None:
    _, watch, averaged = trained
    before = copy_state(averaged)
    expected = references.full_batch_population(select_average(averaged), torch.cat(BATCHES))

    measured = watch.measure(model=averaged)

    assert measure_difference(measured, expected) <= ROUNDING
    assert measure_difference(watch.measure(), expected) > 1e-3  # those of the weights that are trained
    assert are_equal(copy_state(averaged), before)


def test_averaged_weights_have_exact_statistics_in_a_block(trained: Trained) -> None:
    model, watch, averaged = trained
    average = select_average(averaged)
    before = copy_state(average)
    running = copy_state(model)
    expected = evaluate_exactly(average)

    with watch.exact(model=averaged):
        assert evaluate(averaged) == pytest.approx(expected, abs=ROUNDING)
        assert are_equal(copy_state(model), running)
        with watch.exact():  # to save both
            assert watch.is_exact
        with pytest.raises(ValueError, match=r"exact\(\) where the model has exact statistics already"):
            watch.exact(model=averaged)
        assert not watch.is_exact
        train(model, BATCHES[:1])  # it is kept, and is no call of the model of the block

    assert are_equal(copy_state(average), before)
    assert measure_difference(watch.measure(), references.full_batch_population(model, torch.cat(BATCHES))) <= ROUNDING


def test_averaged_weights_are_compared_and_training_goes_on_as_without(trained: Trained) -> None:
    model, watch, averaged = trained
    twin = copy.deepcopy(model)
    expected = evaluate_exactly(select_average(averaged))
    before = copy_state(averaged)
    drawn: list[Tensor] = []

    def evaluate_average() -> float:
        drawn.append(torch.rand(()))
        return evaluate(averaged)

    line = watch.compare(evaluate_average, model=averaged)

    (row,) = watch.history.to_dict("records")
    assert row["exact"] == pytest.approx(expected, abs=ROUNDING)
    assert row["running"] == evaluate(averaged)
    assert "was not seen" not in line
    assert torch.equal(*drawn)
    assert are_equal(copy_state(averaged), before)
    train(model, BATCHES)
    train(twin, BATCHES)
    assert are_equal(copy_state(model), copy_state(twin))


def test_evaluations_of_another_model_than_is_given_are_noticed() -> None:
    model = make_model()
    watch = bnlab.watch(model)
    averaged = AveragedModel(model)
    train(model, BATCHES, averaged)

    assert "was not seen to call the model in eval mode" in watch.compare(lambda: evaluate(model), model=averaged)
    with pytest.raises(ValueError, match="evaluate called the model in train mode"):
        watch.compare(lambda: averaged.train()(HELD_OUT).mean().item(), model=averaged)
    with pytest.warns(RuntimeWarning, match="in train mode in a block"), watch.exact(model=averaged):
        averaged.train()(HELD_OUT)


def test_the_watched_model_is_found_in_its_wrapper() -> None:
    model = make_model()
    watch = bnlab.watch(model)
    train(model, BATCHES)

    with watch.exact(model=nn.DataParallel(model)) as lent:
        assert lent is model
        assert watch.is_exact


class OfDomains(nn.Module):
    """The norm inside of it is called alone, and its input is scaled by an attribute that the loop sets."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Scaled()

    def forward(self, x: Tensor) -> Any:
        raise AssertionError


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(1).double()
        self.factor = 1

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.factor * x)


def test_parts_are_called_and_attributes_set_as_in_training() -> None:
    model = OfDomains()
    watch = bnlab.watch(model)
    averaged = AveragedModel(model)
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    for factor in (1, 10):
        model.net.factor = factor
        model.net(x)

    assert watch.measure(model=averaged)["net.bn"].mean.item() == 11  # of 1, 3, 10 and 30
    assert averaged.module.get_submodule("net").factor == 1


def test_given_batches_are_measured_under_other_weights() -> None:
    model = make_model()
    watch = bnlab.watch(model, batches=BATCHES)
    averaged = AveragedModel(model)
    train(model, make_batches(4), averaged)

    expected = references.full_batch_population(averaged.module, torch.cat(BATCHES))
    assert measure_difference(watch.measure(model=averaged), expected) <= ROUNDING


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (OfDomains(), ValueError, "model= is a OfDomains whose batch norms are not those of the Sequential"),
        (nn.Linear(2, 2), ValueError, "model= is a Linear whose batch norms are not those of the Sequential"),
        (3, TypeError, "expected a torch.nn.Module, found int"),
    ],
    ids=["other names", "none", "no model"],
)
def test_models_with_other_layers_are_refused(model: Any, error: type[Exception], message: str) -> None:
    watched = make_model()
    watch = bnlab.watch(watched)
    train(watched, BATCHES)
    with pytest.raises(error, match=message):
        watch.measure(model=model)
    with pytest.raises(error, match=message):
        watch.exact(model=model)
    with pytest.raises(error, match=message):
        watch.compare(lambda: 1.0, model=model)
