"""The terms of the gap add up to it, and each is what its name says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bnlab import MomentTrace, decompose, estimators, population_statistics, record, replay
from tests import references
from tests.exact.zoo import Net
from tests.helpers import images, plain, unchanged

TERMS = ["start", "noise", "lag", "data", "weighting", "upstream"]


def trained(steps: int, lr: float) -> tuple[nn.Module, MomentTrace, dict[int, dict[str, Tensor]], list[Tensor]]:
    model = plain().train()
    batches = images(8, 6, 8, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    kept = {0: copy.deepcopy(model.state_dict())}
    with record(model) as trace:
        for step in range(steps):
            optimizer.zero_grad()
            model(batches[step % 4]).square().mean().backward()
            optimizer.step()
            kept[step + 1] = copy.deepcopy(model.state_dict())
    return model, trace, kept, batches


def decompose_frozen(model: nn.Module, batches: list[Tensor], momentum: float) -> pd.DataFrame:
    """Record a pass in train mode in which no weight changes, and decompose its average."""
    model.train()
    with record(model) as trace:
        for batch in batches:
            model(batch)
    weights = copy.deepcopy(model.state_dict())
    return decompose(model, trace, lambda step: weights, batches, momentum=momentum)


def test_the_terms_add_up_to_the_gap() -> None:
    model, trace, kept, batches = trained(30, lr=0.05)
    with unchanged(model):
        table = decompose(model, trace, kept.__getitem__, batches, momentum=0.3)
    exact = population_statistics(model, batches)
    ema = replay(trace, estimators.EMA(0.3), [30])[30]
    for statistic in ("mean", "var"):
        expected = torch.cat([getattr(ema[n], statistic) - getattr(exact[n], statistic) for n in exact])
        rows = table[table["statistic"] == statistic]
        torch.testing.assert_close(torch.tensor(rows["gap"].to_numpy()), expected, rtol=0, atol=1e-12)
        total = torch.tensor(rows[TERMS].sum(axis=1).to_numpy())
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)

    assert (table["data"] == 0).all()
    assert list(table.columns) == ["layer", "depth", "channel", "statistic", "gap", *TERMS]


def assert_adds_up(table: pd.DataFrame) -> None:
    total = table[TERMS].sum(axis=1)
    assert (total - table["gap"]).abs().max() < 1e-12


def select_mean(table: pd.DataFrame, layer: str) -> pd.DataFrame:
    return table[(table["layer"] == layer) & (table["statistic"] == "mean")]


def test_on_straight_lines_between_some_of_the_weights() -> None:
    """The first layer's mean is linear in the weights: of weights on a straight line it needs the ends only."""
    model, trace, kept, batches = trained(30, lr=0.05)
    asked: list[int] = []

    def weights(step: int) -> dict[str, Tensor]:
        asked.append(step)
        return {name: torch.lerp(kept[0][name].double(), kept[30][name].double(), step / 30) for name in kept[0]}

    every_step = decompose(model, trace, weights, batches, momentum=0.3, every=1)
    every_fifth = decompose(model, trace, weights, batches, momentum=0.3, every=5)

    assert asked == [*range(29, 16, -1), 29, 24, 19, 17]
    assert_adds_up(every_step)
    assert_adds_up(every_fifth)
    lag = select_mean(every_step, "1")["lag"].to_numpy()
    interpolated = select_mean(every_fifth, "1")["lag"].to_numpy()
    assert interpolated == pytest.approx(lag, abs=1e-6)
    assert abs(lag).max() > 1e-3


def test_batches_of_one_step_weigh_as_batches() -> None:
    """As several steps with the same weights: what accumulated gradients and shared layers record."""
    model, trace, kept, batches = trained(10, lr=0.05)  # all in a window of 13
    step_of = [1, 1, 1, 2, 3, 3, 4, 4, 4, 5]  # that each batch is made a part of
    first = {step: step_of.index(step) for step in step_of}
    grouped = copy.deepcopy(trace)
    for layer in grouped.layers.values():
        layer.steps = step_of
    grouped.last_step = 5
    apart = decompose(model, trace, lambda step: kept[first[step_of[step]]], batches, momentum=0.3)
    together = decompose(model, grouped, lambda step: kept[first[step + 1]], batches, momentum=0.3)

    assert apart["lag"].abs().max() > 1e-4

    for term in TERMS:
        assert together[term].to_numpy() == pytest.approx(apart[term].to_numpy(), abs=1e-12)


def test_frozen_weights_have_no_lag_and_one_network_no_start() -> None:
    model, trace, kept, batches = trained(40, lr=0.0)
    table = decompose(model, trace, kept.__getitem__, batches, momentum=0.5)

    # Weights do not move; what is left is the rounding of float32 moments.
    assert table["lag"].abs().max() < 1e-6
    assert table["start"].abs().max() < 2 * 0.5**40 * 100
    assert table["noise"].abs().max() > 1e-3


def test_a_full_batch_has_no_noise_and_no_upstream_term() -> None:
    model = plain()
    batches = images(12) * 5
    table = decompose_frozen(model, batches, momentum=0.9)

    for term in ("noise", "lag", "upstream"):
        assert table[term].abs().max() < 1e-5

    # Of the weighting only the unbiased variance is left: var/(n−1).
    first = table[(table["layer"] == "1") & (table["statistic"] == "var")]
    found = torch.tensor(first["weighting"].to_numpy())
    moments = references.moments(model[0](batches[0]).detach())
    expected = moments.var / (12 * 64 - 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_dropout_is_in_the_term_of_the_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.BatchNorm1d(5))
    batches = list(torch.randn(4096, 6).split(64))
    table = decompose_frozen(model, batches, momentum=0.1)

    assert_adds_up(table)

    variance = table[table["statistic"] == "var"]
    # x is doubled or 0: E[x²] doubles, of which the variance grows by E[x²] = var + mean².
    clean = population_statistics(model, batches)["2"]
    expected = (clean.var + clean.mean.square()).numpy()
    # Kept or not (b is 1 or 0), a value adds (4b − 1)·x². For a normal x of mean 0 the variance of that is 14·E[x²]²,
    # over 4,096 values 6% of E[x²]. The average remembers some 19 batches, 1,200 values of 4b·x²: 13%.
    data = variance["data"].to_numpy()
    noise = variance["noise"].to_numpy()
    assert data == pytest.approx(expected, rel=0.15)
    assert (abs(noise) < 0.5 * data).all()


def test_augmentation_is_a_term_of_its_own() -> None:
    model, trace, kept, batches = trained(10, lr=0.01)
    brighter = [batch + 1 for batch in batches]
    table = decompose(model, trace, kept.__getitem__, batches, momentum=0.9, augmented=brighter)

    assert_adds_up(table)
    assert table["data"].abs().max() > 0.1


def test_layers_that_no_batch_reaches_are_left_out() -> None:
    def run(net: Any, x: Tensor) -> Any:
        return (net.body(x), net.auxiliary(x)) if net.training else net.body(x)

    model = Net(run, body=plain(), auxiliary=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    table = decompose_frozen(model, images(8, 6), momentum=0.5)

    assert table.attrs["unseen"] == ["auxiliary.1"]
    assert list(table["layer"].unique()) == ["body.1", "body.4"]
    assert_adds_up(table)


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {  # arguments, and what is named
    "another state": (
        lambda: {"weights": lambda step: {"0.weight": torch.zeros(3)}},
        r"weights\(2\) .*\b10 more",
    ),
    "no state": (lambda: {"weights": lambda step: 5}, r"weights\(2\) .*int"),
    "an iterator": (lambda: {"batches": iter(images(8))}, "batches .*iterator"),
    "no steps": (lambda: {"every": 0}, "every=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_how(case: str) -> None:
    make_arguments, named = REFUSED[case]
    model, trace, kept, batches = trained(3, lr=0.1)
    arguments: dict[str, Any] = {"trace": trace, "weights": kept.__getitem__, "batches": batches, **make_arguments()}
    with unchanged(model), pytest.raises(ValueError, match=named):
        decompose(model, **arguments)


def test_a_model_that_is_not_that_of_the_traces_end_is_refused_or_named() -> None:
    model, trace, kept, batches = trained(3, lr=0.01)
    with unchanged(model), pytest.warns(RuntimeWarning, match=r"weights\(step\)"):
        decompose(model, trace, lambda step: model.state_dict(), batches, momentum=1.0)
    model.train()(batches[0])
    with pytest.raises(ValueError, match=r"\b4 batches .*\b3\b"):
        decompose(model, trace, kept.__getitem__, batches)
    earlier, *_ = trained(2, lr=0.01)
    with pytest.raises(ValueError, match="truncate"):
        decompose(earlier, trace, kept.__getitem__, batches)
    with record(model) as empty, pytest.raises(ValueError, match=r"trace .*empty"):
        decompose(model, empty, kept.__getitem__, batches)
