"""What a forward changes for a while, and puts back itself: it finds its own values, and so does the caller."""

from __future__ import annotations

import contextlib
import enum
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from bnlab import population_statistics, watch
from bnlab.model.reading import Reader
from tests import references
from tests.helpers import assert_moments, measure_difference

CHANNELS = 5
BATCHES = [torch.randn(16, CHANNELS, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
STRATEGIES = pytest.mark.parametrize("strategy", ["breadth", "layerwise"])


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.BatchNorm1d(CHANNELS), nn.ReLU(), nn.Linear(CHANNELS, 2))


@contextlib.contextmanager
def averaged(model: nn.Module, averages: list[Tensor]) -> Iterator[None]:
    """Put averages in the place of weights, as libraries of weight averaging do."""
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter, average in zip(model.parameters(), averages, strict=True):
        parameter.data.copy_(average)
    try:
        yield
    finally:
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.data.copy_(value)


@STRATEGIES
@pytest.mark.parametrize("is_careful", [True, False], ids=["in a block", "line by line"])
def test_weights_that_are_swapped_for_a_forward_come_back(strategy: str, is_careful: bool) -> None:
    model = build()
    averages = [1.5 * parameter.detach() + 0.1 for parameter in model.parameters()]
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def run(model: nn.Module, x: Tensor) -> Tensor:
        if is_careful:
            with averaged(model, averages):
                return model(x)
        # As code for binary networks has it, which a forward that is ended in the middle would leave with the averages.
        block = averaged(model, averages)
        block.__enter__()
        y: Tensor = model(x)
        block.__exit__(None, None, None)
        return y

    found = population_statistics(model, BATCHES, forward=run, strategy=strategy)

    assert all(map(torch.equal, model.parameters(), before))
    weight, bias = averages[:2]
    assert_moments(found["1"], references.merge([x.double() @ weight.double().T + bias.double() for x in BATCHES]))


@pytest.mark.parametrize("number", [math.nan, 1.5])
def test_a_parameter_that_is_not_a_number_has_not_changed(number: float) -> None:
    """It differs from itself, but no forward has changed it."""
    model = build()
    with torch.no_grad():
        model.get_parameter("3.bias").fill_(number)
    vars(model[2])["note"] = number

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        population_statistics(model, BATCHES, strategy="breadth")


@STRATEGIES
@pytest.mark.filterwarnings("ignore:population_statistics. an ordinary forward:RuntimeWarning")
def test_attributes_that_are_changed_for_a_part_of_a_forward(strategy: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)
            self.dropout = nn.Dropout(0.4)
            self.scale = 2.0

        def forward(self, x: Tensor) -> Any:
            scale, p = self.scale, self.dropout.p
            self.scale, self.dropout.p = 3.0, p / 2
            y = self.dropout(self.first(x)) * self.scale
            self.scale, self.dropout.p = scale, p
            return self.second(y * self.scale)

    model = Net()
    found = population_statistics(model, BATCHES, strategy=strategy)

    assert (model.scale, model.dropout.p) == (2.0, 0.4)
    # What is normalized has variance v / (v + ε); the two scales multiply it by 6².
    x = torch.cat(BATCHES).double()
    var = x.var(0, correction=0)
    torch.testing.assert_close(found["second"].var, 36 * var / (var + model.first.eps), rtol=1e-5, atol=0)


@STRATEGIES
@pytest.mark.filterwarnings("ignore:population_statistics. an ordinary forward:RuntimeWarning")
def test_hooks_that_a_forward_removes_again(strategy: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)

        def forward(self, x: Tensor) -> Any:
            handle = self.first.register_forward_hook(lambda layer, args, output: 3 * output)
            y = self.second(self.first(x))
            handle.remove()
            return y

    model = Net().eval()
    before = model(BATCHES[0])
    population_statistics(model, BATCHES, strategy=strategy)

    torch.testing.assert_close(model(BATCHES[0]), before, rtol=0, atol=0)


def propagates_tangents() -> bool:
    """Whether torch differentiates in forward mode."""
    one = torch.ones(1)
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(2 * forward_ad.make_dual(one, one)).tangent is not None


@STRATEGIES
def test_forward_mode_stays_on_where_layers_run_inside_of_a_function_of_autograd(strategy: str) -> None:
    """Such a function turns it off while its forward runs, as that of a reentrant checkpoint."""

    def run(model: nn.Module, x: Tensor) -> Any:
        return checkpoint(model, x.clone().requires_grad_(), use_reentrant=True)

    model = build()
    assert propagates_tangents()
    found = population_statistics(model, BATCHES, forward=run, strategy=strategy)

    assert propagates_tangents()
    assert measure_difference(found, population_statistics(model, BATCHES)) < 1e-6


def test_a_forward_is_ended_where_what_it_gave_a_layer_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory, say: it puts back what it has changed before the caller gets the error."""
    is_open = False

    def run(model: nn.Module, x: Tensor) -> Any:
        nonlocal is_open
        is_open = True
        try:
            return model(x)
        finally:
            is_open = False

    def refuse(reader: Reader, x: Tensor) -> Any:
        raise MemoryError

    monkeypatch.setattr(Reader, "measure", refuse)
    with pytest.raises(MemoryError) as raised:
        population_statistics(build(), BATCHES, forward=run)

    assert raised.traceback  # which holds the forward, as long as somebody looks at it
    assert not is_open


class Domain(enum.Enum):
    """What most batches are of, and a few are not."""

    USUAL = 1
    RARE = 4


def test_an_enumeration_that_few_batches_set_is_kept_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)
            self.domain = Domain.USUAL

        def forward(self, batch: tuple[Tensor, int]) -> Any:
            x, domain = batch
            self.domain = Domain(domain)
            return self.second(self.first(x) * self.domain.value)

    batches = [(x, 4 if number in (2, 4) else 1) for number, x in enumerate(BATCHES)]

    def run(model: nn.Module, batch: Any) -> Any:
        return model(batch)

    expected = population_statistics(Net(), batches, forward=run, strategy="layerwise")
    found = population_statistics(Net(), batches, forward=run)

    torch.testing.assert_close(found["second"].var, expected["second"].var, rtol=1e-6, atol=0)


def test_a_mask_that_few_images_fill_is_seen_in_whole_batches() -> None:
    """Sequences are sorted by length, so that the first ones of a batch have no padding."""

    class Masked(nn.BatchNorm1d):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            rows = x.transpose(1, 2)
            y = torch.zeros_like(rows)
            y[mask] = super().forward(rows[mask])
            return y.transpose(1, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Masked(CHANNELS)

        def forward(self, x: Tensor) -> Any:
            lengths = torch.tensor([12, 12, 12, 12, 6, 5, 4, 3])
            return self.norm(x, torch.arange(12)[None] < lengths[:, None])

    batches = [torch.randn(8, CHANNELS, 12) + 4 for _ in range(3)]
    found = population_statistics(Net(), batches)

    kept = torch.arange(12)[None] < torch.tensor([12, 12, 12, 12, 6, 5, 4, 3])[:, None]
    rows = torch.cat([batch.transpose(1, 2)[kept] for batch in batches])
    assert_moments(found["norm"], references.moments(rows))


def test_what_a_module_forgets_when_it_is_trained_is_forgotten() -> None:
    """Attention layers keep what they have computed of their weights in eval mode, until `train()`."""

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(CHANNELS))
            self.remembered: list[Tensor] = []

        def train(self, mode: bool = True) -> Remembers:
            super().train(mode)
            if mode:
                self.remembered.clear()
            return self

        def forward(self, x: Tensor) -> Tensor:
            if not self.training and not self.remembered:
                self.remembered.append(self.scale.detach().clone())
            return x * (self.scale if self.training else self.remembered[0])

    part = Remembers()
    model = nn.Sequential(part, nn.BatchNorm1d(CHANNELS)).train()
    first = population_statistics(model, BATCHES)
    part.scale.data.fill_(3.0)

    second = population_statistics(model, BATCHES)

    assert part.remembered == []
    torch.testing.assert_close(second["1"].var, 9 * first["1"].var, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("strategy", "statistic"), [("layerwise", "exact"), ("breadth", "precise")])
def test_the_slow_way_and_one_pass_keep_the_layout_of_images(strategy: str, statistic: str) -> None:
    """This forward counts in strides, and would read other pixels where channels are innermost."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Any:
            return self.norm(torch.as_strided(x, x.shape, (48, 16, 4, 1)))

    batches = [torch.randn(8, 3, 4, 4) * torch.arange(1.0, 4.0)[:, None, None] for _ in range(3)]
    found = population_statistics(Net(), batches, strategy=strategy, statistic=statistic)
    assert_moments(found["norm"], references.merge([x.movedim(1, -1).flatten(0, 2).double() for x in batches]))


def test_a_watched_network_that_is_given_the_same_images_in_several_widths() -> None:
    class Slim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(CHANNELS)

        def forward(self, x: Tensor, width: float = 1.0) -> Any:
            return self.norm(x * width)

    model = Slim()
    watching = watch(model)
    for width in (0.25, 0.5, 1.0):
        model(BATCHES[0], width).sum().backward()

    expected = references.merge([BATCHES[0].double() * width for width in (0.25, 0.5, 1.0)])
    assert_moments(watching.measure()["norm"], expected)
