"""The gap against closed forms and the float64 twin."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bnlab import Moments, Statistics, gap, population_statistics, running_statistics, using
from tests import references
from tests.helpers import images, plain, residual, train

GAP_COLUMNS = ("mean_gap", "var_gap", "kl")


def statistics(mean: list[float], var: list[float], eps: float = 0.0, name: str = "bn") -> Statistics:
    moments = Moments(math.nan, torch.tensor(mean, dtype=torch.float64), torch.tensor(var, dtype=torch.float64))
    return Statistics({name: moments}, {name: eps})


def test_closed_form() -> None:
    weights = {"bn": torch.tensor([3.0, 2.0]).double()}
    reference = statistics([0, 0], [4, 4])
    moments = statistics([2, 0], [4, 4 * math.e])
    estimate = Statistics(moments, reference.eps, weights=weights)

    frame = gap(reference, estimate)

    assert list(frame) == ["layer", "depth", "channels", *GAP_COLUMNS, "output_gap"]

    row = frame.iloc[0].to_dict()
    assert row == {
        "layer": "bn",
        "depth": 1,
        "channels": 2,
        "mean_gap": pytest.approx(math.sqrt(1 / 2)),
        "var_gap": pytest.approx(math.sqrt(1 / 2)),
        "kl": pytest.approx((0.5 + 0.5 / math.e) / 2),
        # 3·2/2 in the first channel, 2·(2 − 2√e)/2√e in the second
        "output_gap": pytest.approx(math.sqrt((9 + 4 * (math.exp(-0.5) - 1) ** 2) / 2)),
    }


def test_each_layers_eps_counts_and_weights_that_nobody_knows_give_no_output_gap() -> None:
    row = gap(statistics([0, 0], [0, 0], eps=4), statistics([2, 2], [12, 12], eps=4)).iloc[0]

    assert row["mean_gap"] == 1
    assert row["var_gap"] == pytest.approx(math.log(4))
    assert math.isnan(row["output_gap"])


def test_values_that_are_not_finite_or_negative_are_named() -> None:
    bad = statistics([0.0, math.nan, 0.0], [1.0, 1.0, -2.0])
    with pytest.warns(RuntimeWarning, match=r"estimate: .*'bn'") as caught:
        gap(statistics([0.0] * 3, [1.0] * 3), bad)
    assert caught[0].filename == __file__


def test_against_the_twin_in_any_order() -> None:
    model = residual()
    reference = running_statistics(model)
    train(model, images(4, 4, 4))
    estimate = running_statistics(model)
    reordered = Statistics(dict(list(estimate.items())[::-1]), estimate.eps)
    frame = gap(reference, reordered)

    assert frame["layer"].tolist() == list(reference)
    assert frame["depth"].tolist() == list(range(1, 8))

    for row in frame.to_dict("records"):
        layer = row["layer"]
        expected = references.gap(
            (reference[layer].mean, reference[layer].var),
            (estimate[layer].mean, estimate[layer].var),
            eps=reference.eps[layer],
        )
        assert {key: row[key] for key in GAP_COLUMNS} == pytest.approx(expected, rel=1e-10)


def test_a_bad_layer_does_not_reach_the_others() -> None:
    reference = running_statistics(plain())
    estimate = running_statistics(plain())
    estimate["1"].mean[0] = math.nan

    first, second = gap(reference, estimate).to_dict("records")

    assert math.isnan(first["mean_gap"])
    assert all(second[column] == 0 for column in GAP_COLUMNS)

    estimate["1"].mean[0] = 0
    estimate["1"].var[2] = -1e-5  # var + eps = 0

    first, second = gap(reference, estimate).to_dict("records")
    assert math.isnan(first["var_gap"])
    assert math.isnan(first["kl"])
    assert first["mean_gap"] > 0
    assert all(second[column] == 0 for column in GAP_COLUMNS)


@pytest.mark.parametrize(
    ("reference", "estimate", "error", "named"),
    [
        ({}, statistics([0], [1]), TypeError, "dict"),
        (statistics([0], [1]), statistics([0], [1], name="other"), ValueError, r"'bn' .*\(2 such\)"),
        (statistics([0], [1]), statistics([0, 0], [1, 1]), ValueError, r"'bn' .*\b1 channels .*\b2 "),
    ],
)
def test_bad_input(reference: Any, estimate: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        gap(reference, estimate)


def without(statistics: Statistics, *names: str, unseen: tuple[str, ...] = ()) -> Statistics:
    return Statistics({n: m for n, m in statistics.items() if n not in names}, statistics.eps, unseen)


class Auxiliary(nn.Module):
    """A head that only training uses, as inception's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(self.head(x) if self.training else x)


def test_layers_that_no_data_reached_are_left_out() -> None:
    model = Auxiliary()
    exact = population_statistics(model, images(4, 4))
    running = running_statistics(model)
    for sides in ((exact, running), (running, exact)):
        frame = gap(*sides)
        assert frame["layer"].tolist() == ["first", "last"]
        assert frame.attrs["unseen"] == ["head"]

    assert gap(running, running).attrs["unseen"] == []

    with pytest.raises(ValueError, match=r"'last' .*\(1 such\)"):
        gap(exact, without(running, "last"))
    with pytest.raises(ValueError, match="'first'"):  # nothing in common
        gap(without(exact, "last", unseen=("head", "last")), without(running, "first"))
    with using(model, exact):
        model(images(4)[0])
    exact.write_to(model)
    assert gap(exact, running_statistics(model))["mean_gap"].max() < 1e-6


def compile_and_distribute(model: nn.Module) -> nn.Module:
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    return nn.DataParallel(compiled)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, compile_and_distribute])
def test_names_of_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Either side may be the wrapped one."""
    model, other = plain(), plain()
    train(model, images(4, 4))
    wrapped = wrap(model)
    mine, theirs = running_statistics(model), running_statistics(wrapped)

    assert list(mine) != list(theirs)
    assert gap(mine, theirs)["layer"].tolist() == list(mine)
    assert (gap(mine, theirs)["kl"] == 0).all()
    assert gap(theirs, mine)["layer"].tolist() == list(theirs)

    theirs.write_to(other)
    gaps = gap(mine, running_statistics(other))
    assert (gaps[list(GAP_COLUMNS)] == 0).all(axis=None)

    start = running_statistics(plain())
    with using(wrapped, start):
        lent = model.get_buffer("1.running_mean").double()
    assert torch.equal(lent, start["1"].mean)

    start.write_to(wrapped)
    gaps = gap(start, running_statistics(model))
    assert (gaps["kl"] == 0).all()
