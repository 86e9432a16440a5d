"""Lending a model: it comes back as it was, also after an exception."""

from __future__ import annotations

import contextlib
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab import population_statistics, running_statistics, using
from bnlab.model.borrow import measured
from bnlab.statistics.network import Lending
from tests.helpers import images, residual, unchanged


def disturb(model: Any) -> None:
    """What forwards of real models do to themselves."""
    model.train()
    model(images(4)[0])
    torch.rand(3)
    np.random.rand(3)
    random.random()
    model[1].running_mean = torch.full((6,), 7.0)
    model[1].weight = nn.Parameter(torch.zeros(6))
    model[1].num_batches_tracked.add_(5)
    model[3].eval()


def lend(model: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    return using(model, running_statistics(model))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_model_comes_back_as_it_was(error: type[BaseException] | None) -> None:
    model = residual().train()
    model[3].eval()
    loss = model(images(4)[0]).sum()
    names = [*model.state_dict(), *dict(model.named_parameters())]
    with unchanged(model):
        try:
            with lend(model), lend(model):
                assert not any(module.training for module in model.modules())
                disturb(model)
                if error:
                    raise error
        except (RuntimeError, KeyboardInterrupt):
            assert error

    assert [*model.state_dict(), *dict(model.named_parameters())] == names
    loss.backward()


class Merging(nn.Linear):
    """In eval mode its weight is another one, as that of LoRA's layers."""

    def train(self, mode: bool = True) -> Merging:
        if mode != self.training:
            self.weight.data.add_(-1.0 if mode else 1.0)
        return super().train(mode)


def test_layers_that_do_something_in_eval_mode_undo_it() -> None:
    model = nn.Sequential(Merging(4, 4), nn.BatchNorm1d(4))
    with unchanged(model), lend(model):
        inside = model.get_parameter("0.weight").detach().clone()
    model.eval()

    assert torch.equal(model.get_parameter("0.weight"), inside)  # once, not twice


class Momentum(nn.Module):
    """Moves a frozen teacher in each forward, in eval mode too, as MoCo's model does."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.teacher = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        self.teacher.weight.lerp_(self.get_parameter("student.0.weight").detach(), 0.1)
        return self.teacher(x) * self.student(x)


def test_a_teacher_that_a_callers_forward_moves_comes_back() -> None:
    model = Momentum()
    with unchanged(model), lend(model):
        model(torch.randn(4, 3))


class Telling(nn.Module):
    """Tells somebody its mode, as optimizers are told that average weights, and freezes its weights in eval mode."""

    def __init__(self, told: list[bool]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 3)
        self._tell = told.append

    def train(self, mode: bool = True) -> Telling:
        self._tell(mode)
        self.linear.requires_grad_(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.norm(x))


@pytest.mark.parametrize("borrow", [lend, lambda model: _Measuring(model)])
def test_a_module_that_does_something_in_a_mode_is_told_when_it_comes_back(borrow: Any) -> None:
    told: list[bool] = []
    model = Telling(told).train()
    with borrow(model):
        assert told[-1] is False
    assert told[-1] is True
    assert all(parameter.requires_grad for parameter in model.parameters())


class _Measuring(contextlib.nullcontext[None]):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.lent = measured(model)

    def __enter__(self) -> None:
        self.lent.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.lent.__exit__(*error)


class OwnEval(nn.Module):
    """Takes another way once eval() was called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.is_evaluated = False

    def eval(self) -> OwnEval:
        self.is_evaluated = True
        return super().eval()

    def forward(self, x: Tensor) -> Any:
        return self.norm(x + 5 if self.is_evaluated else x)


def test_an_eval_of_a_models_own_is_called() -> None:
    model = OwnEval().train()
    data = torch.randn(8, 3)
    found = population_statistics(model, [data])
    torch.testing.assert_close(found["norm"].mean, (data + 5).mean(0).double())
    assert not model.is_evaluated


class Merges(nn.Module):
    """Merges into the weight of another module while it is in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 3)

    def train(self, mode: bool = True) -> Merges:
        if mode != self.training:
            self.linear.weight.data.add_(-0.1 if mode else 0.1)
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.linear(x))


def test_weights_that_are_merged_into_another_module_come_back() -> None:
    model = Merges().train()
    with unchanged(model), lend(model):
        pass
    watch_of = population_statistics(model, [torch.randn(8, 3)])
    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")  # these are the weights that were measured, in both modes
        with using(model, watch_of):
            pass


def test_gradients_that_a_forward_takes_are_not_added_to_the_callers() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(8, 3)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    def attribute(model: nn.Module, batch: Tensor) -> None:
        with torch.enable_grad():
            model(batch).square().sum().backward()

    population_statistics(model, [torch.randn(8, 3)], forward=attribute)
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_averages_come_back_into_a_model_that_was_moved() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    model(torch.randn(8, 3))
    before = model[0].get_buffer("running_mean").clone()
    with exact_of(model):
        model.double().float()
    assert torch.equal(model[0].get_buffer("running_mean"), before)


def exact_of(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    statistics = population_statistics(model, [torch.randn(8, 3)])
    return Lending(model, statistics, "test")


def test_a_buffer_that_cannot_be_written() -> None:
    model = residual()
    model.register_buffer("table", torch.ones(1, 4).expand(8, 4))
    with unchanged(model), lend(model):
        pass


class Registering(nn.Module):
    """Makes a grid of the size of its first input, and keeps it as a buffer."""

    scale: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("scale", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.zeros(x.shape[-2:]))
        if self.scale is None:
            self.scale = torch.ones(3, 1, 1)
        return self.norm(x) * self.scale + self.grid  # type: ignore[no-any-return]


def test_buffers_that_a_forward_registers_are_taken_away_again() -> None:
    model = Registering().eval()
    with lend(model):
        inside = model(images(4)[0])

    assert not hasattr(model, "grid")
    assert model.scale is None
    assert torch.equal(model(images(4)[0]), inside)


class Caching(nn.Module):
    """Keeps noise of the size of its first batch, and counts its calls."""

    noise: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.calls = 0
        self.latest: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "noise"):
            self.noise = torch.ones(len(x), 1, 1, 1)
        self.calls += 1
        self.latest = x + self.noise
        return self.norm(self.latest)  # type: ignore[no-any-return]


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
def test_what_a_forward_keeps_of_a_measurement_is_taken_away_again(strategy: Any) -> None:
    """The sample that a measurement begins with has fewer images than a batch."""
    model = Caching()
    batches = images(16, 16)

    exact = population_statistics(model, batches, strategy=strategy)

    mean = torch.cat(batches).double().mean((0, 2, 3)) + 1
    assert torch.allclose(exact["norm"].mean, mean, atol=1e-6)
    assert exact.check is not None
    assert exact.check.is_exact
    assert not hasattr(model, "noise")
    assert model.calls == 0
    assert model.latest is None
    model(batches[0])


class NotWritten(dict[str, int]):
    """As of settings that may not change."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError

    def clear(self) -> None:
        raise TypeError


class Grows(nn.Module):
    """Registers a longer buffer when it is given more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.length = 0
        self.settings = NotWritten(a=1)

    def forward(self, x: Tensor) -> Any:
        if x.shape[2] > self.length:
            self.length = x.shape[2]
            self.register_buffer("scale", torch.ones(self.length), persistent=False)
        return self.norm(x * self.get_buffer("scale")[: x.shape[2]])


def test_a_buffer_and_the_number_beside_it_come_back_together() -> None:
    model = Grows().eval()
    statistics = population_statistics(model, [torch.randn(4, 3, 2)])
    model(torch.randn(4, 3, 2))
    with unchanged(model), using(model, statistics):
        model(torch.randn(4, 3, 5))
    assert model.length == 2
    model(torch.randn(4, 3, 5))
    assert model.settings == {"a": 1}


def test_a_block_begins_when_it_is_entered() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    data = torch.randn(8, 3)
    block = using(model, population_statistics(model, [data]))
    model(data)
    with unchanged(model), block:
        pass
    model(data)
    with unchanged(model), block:
        pass


def test_a_layer_in_torchscript_gets_its_averages_back() -> None:
    data = torch.randn(8, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
        statistics = population_statistics(model, [data])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with using(model, statistics):
        assert torch.allclose(model.state_dict()["1.running_var"].double(), statistics["1"].var)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
