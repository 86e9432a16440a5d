"""Effects for the claims of `normalizers`, and the words that `by_norm` gives its networks."""

from __future__ import annotations

from typing import Any

import pytest

from experiments import by_norm
from experiments.questions.normalizers import find_gains
from tests.experiments.planted import Effect, Value, alternate, plant

EXACT, EMA = ("exact", None), ("ema", 0.01)
COMMON: dict[str, Any] = {
    "estimators": [EMA, EXACT],
    "sizes": (4, 64),
    "shares": (1.0,),
    "settings": {"norm.name": ("batch", "renorm", "group", "gain_control", "none")},
}


def effect(norm: str, holds: float, fails: float) -> Effect:
    """Points that networks with this norm gain against all others."""

    def gain(points: float, noise: float = 0) -> Value:
        return lambda row: 0.5 + (points + row["seed"] / 50 + noise * alternate(row)) / 100 * (row["norm.name"] == norm)

    return Effect({**COMMON, "accuracy": gain(holds)}, {"accuracy": gain(fails)}, accuracy=gain(0, 30))


EFFECTS = {
    "group_norm_wins_when_small": effect("group", 3, -3),
    "batch_norm_wins_when_moderate": effect("group", -3, 3),
    "renorm_wins_when_small": effect("renorm", 3, -3),
    "gain_control_keeps_up": effect("gain_control", 0, -3),
    "no_norm_costs": effect("none", -3, 0),
}


def points(row: dict[str, Any]) -> float:
    return (
        0.5
        + row["seed"] / 10
        + {"batch": 0.0, "group": 0.03}.get(row["norm.name"], 0)
        + 0.01 * (row["estimator"] == "exact")
    )


def test_gains_are_against_batch_norm_of_the_same_seed_under_either_statistics() -> None:
    found = find_gains(plant(accuracy=points, **COMMON))
    group = found[found["normalizer"] == by_norm.GROUP].groupby("line")["accuracy"]
    assert group.agg(["min", "max"]).loc["against batch norm"].to_list() == pytest.approx([0.03, 0.03])
    assert group.agg(["min", "max"]).loc["against batch norm, exact statistics"].to_list() == pytest.approx(
        [0.02, 0.02]
    )


def test_norms_have_their_order_and_others_their_own_name() -> None:
    settings = {"norm.name": ("none", "ghost", "renorm", "batch")}
    found = by_norm.find_accuracies(plant([EMA, EXACT], sizes=(4,), settings=settings), (1.0,), ("batch_size",))
    names = [by_norm.BATCH, by_norm.RENORM, by_norm.NONE, "ghost"]
    named = [name for name in dict.fromkeys(found["normalizer"]) if not name.endswith(by_norm.EXACT)]
    assert named == names
