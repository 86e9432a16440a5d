"""The terms of the gap add up to it, and each is what its name says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bnlab import (
    MomentTrace,
    Statistics,
    decompose,
    estimators,
    gap,
    population_statistics,
    record,
    record_frozen,
    replay,
    running_statistics,
)
from bnlab.decomposition import TERMS, window
from tests import references
from tests.helpers import images, plain, unchanged


def trained(steps: int, lr: float) -> tuple[nn.Module, MomentTrace, dict[int, dict[str, Tensor]], list[Tensor]]:
    model = plain()
    batches = images(8, 6, 8, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    kept = {0: copy.deepcopy(model.state_dict())}
    model.train()
    with record(model) as trace:
        for step in range(steps):
            optimizer.zero_grad()
            model(batches[step % 4]).square().mean().backward()
            optimizer.step()
            kept[step + 1] = copy.deepcopy(model.state_dict())
    return model, trace, kept, batches


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
        total = torch.tensor(rows[list(TERMS)].sum(axis=1).to_numpy())
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)

    assert (table["data"] == 0).all()
    assert list(table.columns) == ["layer", "depth", "channel", "statistic", "gap", *TERMS]


def assert_adds_up(table: pd.DataFrame) -> None:
    total = table[list(TERMS)].sum(axis=1)
    assert (total - table["gap"]).abs().max() < 1e-12


def select_mean(table: pd.DataFrame, layer: str) -> pd.DataFrame:
    return table[(table["layer"] == layer) & (table["statistic"] == "mean")]


def interpolate(first: dict[str, Tensor], last: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: (1 - share) * first[name].double() + share * last[name].double() for name in first}


def test_on_straight_lines_between_some_of_the_weights() -> None:
    """The first layer's mean is linear in the weights: of weights on a straight line it needs the ends only."""
    model, trace, kept, batches = trained(30, lr=0.05)
    asked: list[int] = []

    def weights(step: int) -> dict[str, Tensor]:
        asked.append(step)
        share = step / 30
        return interpolate(kept[0], kept[30], share)

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
    """As two steps with the same weights: what accumulated gradients and shared layers record."""
    model, trace, kept, batches = trained(10, lr=0.05)  # all in a window of 13
    pairs = copy.deepcopy(trace)
    for layer in pairs.layers.values():
        layer.steps = [(step + 1) // 2 for step in layer.steps]
    pairs.last_step = 5
    apart = decompose(model, trace, lambda step: kept[step // 2 * 2], batches, momentum=0.3)
    together = decompose(model, pairs, lambda step: kept[2 * step], batches, momentum=0.3)

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
    batches = images(12)
    model.train()
    with record(model) as trace:
        for _ in range(5):
            model(batches[0])
    weights = copy.deepcopy(model.state_dict())
    table = decompose(model, trace, lambda step: weights, batches, momentum=0.9)

    for term in ("noise", "lag", "upstream"):
        assert table[term].abs().max() < 1e-5

    # Of the weighting only the unbiased variance is left: var/(n−1).
    first = table[(table["layer"] == "1") & (table["statistic"] == "var")]
    found = torch.tensor(first["weighting"].to_numpy())
    moments = references.moments(model[0](batches[0]).detach())
    expected = moments.var / (12 * 64 - 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


class WithAuxiliary(nn.Module):
    """A second classifier, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()
        self.auxiliary = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.body(x), self.auxiliary(x)) if self.training else (self.body(x),)


def test_layers_that_no_batch_reaches_are_left_out() -> None:
    model = WithAuxiliary()
    batches = images(8, 6)
    model.train()
    with record(model) as trace:
        for batch in batches:
            model(batch)
    weights = copy.deepcopy(model.state_dict())
    table = decompose(model, trace, lambda step: weights, batches, momentum=0.5)

    assert table.attrs["unseen"] == ["auxiliary.1"]
    assert list(table["layer"].unique()) == ["body.1", "body.4"]
    assert_adds_up(table)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: {"0.weight": torch.zeros(3)}, "'0.bias', '1.weight', .* and 9 more missing"),
        (lambda state: 5, "type int"),
        (lambda state: state | {"0.weight": torch.zeros(3)}, "other shapes in '0.weight'"),
        (lambda state: state | {"other": torch.zeros(3)}, "the model has no 'other'"),
    ],
)
def test_weights_of_another_model_are_refused(change: Callable[[dict[str, Tensor]], Any], reason: str) -> None:
    model, trace, _, batches = trained(3, lr=0.01)
    told = pytest.raises(ValueError, match=rf"weights\(2\) is no state dict of the model \({reason}\)")
    with unchanged(model), told:
        decompose(model, trace, lambda step: change({**model.state_dict()}), batches)


def test_weights_that_were_not_copied_are_told() -> None:
    """They were those of now, and the lag 0."""
    model, trace, _, batches = trained(3, lr=0.01)
    with unchanged(model), pytest.warns(RuntimeWarning, match=r"weights\(step\) gives the model's own tensors"):
        decompose(model, trace, lambda step: model.state_dict(), batches, momentum=1.0)


def test_augmentation_is_a_term_of_its_own() -> None:
    model, trace, kept, batches = trained(10, lr=0.01)
    brighter = [batch + 1 for batch in batches]
    table = decompose(model, trace, kept.__getitem__, batches, momentum=0.9, augmented=brighter)

    assert_adds_up(table)
    assert table["data"].abs().max() > 0.1


def dropping() -> nn.Module:
    """Dropout before a batch-norm layer."""
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 2)).train()


def test_dropout_is_in_the_term_of_the_data() -> None:
    torch.manual_seed(0)
    model = dropping()
    batches = list(torch.randn(4096, 6).split(64))
    with record(model) as trace:
        for batch in batches:
            model(batch)
    weights = copy.deepcopy(model.state_dict())
    table = decompose(model, trace, lambda step: weights, batches, momentum=0.1)

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


def assert_near(found: Statistics, expected: Statistics) -> None:
    gaps = gap(expected, found)
    assert gaps["mean_gap"].max() < 5e-6
    assert gaps["var_gap"].max() < 5e-6


def test_frozen_in_training_is_update_bn_with_dropout_on() -> None:
    model = dropping()
    batches = list(torch.randn(256, 6).split(64))
    other = copy.deepcopy(model)
    with torch.random.fork_rng():
        frozen = record_frozen(model, batches, training=True)
        torch.optim.swa_utils.update_bn(batches, other)
    ours = replay(frozen, estimators.Cumulative(), [4])[4]

    assert_near(ours, running_statistics(other))

    frozen = record_frozen(model, batches)
    without = replay(frozen, estimators.Cumulative(), [4])[4]
    assert gap(ours, without)["var_gap"].item() > 0.3


def test_frozen_estimators_are_those_of_the_tools() -> None:
    model = plain()
    batches = images(8, 8, 4)
    with unchanged(model):
        frozen = record_frozen(model, batches)
    other = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(batches, other.eval())
    ours = replay(frozen, estimators.Cumulative(), [3])[3]
    expected = running_statistics(other)

    assert_near(ours, expected)

    pooled = replay(frozen, estimators.PooledCumulative(), [3])[3]
    precise = population_statistics(model, batches, upstream="batch")
    assert_near(pooled, precise)


def test_bad_input() -> None:
    model, trace, kept, batches = trained(3, lr=0.1)
    with unchanged(model):
        with pytest.raises(ValueError, match="batches is an iterator and can be read only once"):
            decompose(model, trace, kept.__getitem__, iter(batches))
        with record(model) as empty, pytest.raises(ValueError, match="the trace is empty"):
            decompose(model, empty, kept.__getitem__, batches)
        with pytest.raises(ValueError, match="every=0; pass a number of steps, 1 or more"):
            decompose(model, trace, kept.__getitem__, batches, every=0)
        with pytest.raises(ValueError, match="batches is empty"):
            record_frozen(model, [])

    assert window(0.1) == 44
    assert window(0.01) == 459


def test_a_model_that_was_trained_on_is_refused() -> None:
    model, trace, kept, batches = trained(5, lr=0.05)
    model.train()(batches[0])
    with pytest.raises(ValueError, match="has seen 6 batches and the trace ends after 5"):
        decompose(model, trace, kept.__getitem__, batches, momentum=0.5)
