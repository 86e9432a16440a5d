"""Effects for the claims of `momentum`; theory sees other seeds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.experiment import answers
from experiments.questions.momentum import EXPERIMENT
from tests.experiments.planted import EMA, Effect, Value, decide, plant, sign

GRID = [("ema", 0.9 * 1.3**-k) for k in range(12)]


def best_at(momentum: float) -> Value:
    """A gap with its minimum there. Theory puts it at 0.62 for as much drift as noise, once the start is forgotten."""
    return lambda row: 0.1 + abs(math.log((row["momentum"] or 1) * (1 + row["seed"] / 50) / momentum))


def bend(ends: float) -> Value:
    """A gap that is so many times as large at the ends of the sweep as between them."""
    return lambda row: 0.1 * (1 + row["seed"] / 50) * (ends if row["momentum"] in (0.001, 1.0) else 1)


def spread(row: dict[str, Any]) -> float:
    """A gap of the ends that is far above the others' for half of the seeds, and far below for the rest."""
    return math.exp(sign(row) * (row["momentum"] in (0.001, 1.0)) + 0.2)


def choose(estimator: str, factor: float) -> Value:
    """A gap of all momenta, lowest where theory expects it, and one of another estimator: so many times the lowest."""
    return lambda row: factor * (1 + row["seed"] / 50) * 0.1 if row["estimator"] == estimator else best_at(0.6)(row)


def other(estimator: str) -> Value:
    """A gap of this estimator that is far above the others' for half of the seeds, and far below for the rest."""
    return lambda row: 0.1 * math.exp((1 - 2 * (row["seed"] % 2)) * (row["estimator"] == estimator))


def mistake(points: float) -> Value:
    """Accuracy that is so many points lower at a momentum of 0.9."""
    return lambda row: 0.9 - (points + row["seed"] / 10) / 100 * (row["momentum"] == 0.9)


BOTH: dict[str, Any] = {"estimators": [EMA, ("ema", 0.9)]}
CHOICE: dict[str, Any] = {"estimators": [*GRID, ("predictive", None)]}
PLAIN: dict[str, Any] = {"estimators": [EMA, ("cumulative", None)]}

EFFECTS = {
    "gap_is_u_shaped": Effect(
        {"estimators": [("ema", 0.001), EMA, ("ema", 1.0)], "gap": bend(3)}, {"gap": bend(0.3)}, gap=spread
    ),
    "theory_knows_momentum": Effect(
        {"estimators": GRID, "gap": best_at(0.6)},
        {"gap": best_at(0.06)},
        gap=lambda row: best_at(0.6 if sign(row) > 0 else 0.1)(row),
    ),
    "forecast_beats_theory": Effect(
        CHOICE | {"gap": choose("predictive", 0.1)}, {"gap": choose("predictive", 50)}, gap=other("predictive")
    ),
    "forecast_is_as_good_as_hindsight": Effect(
        CHOICE | {"gap": choose("predictive", 0.1)}, {"gap": choose("predictive", 50)}, gap=other("predictive")
    ),
    "plain_average_is_farther": Effect(
        PLAIN | {"gap": choose("cumulative", 99)}, {"gap": choose("cumulative", 0.1)}, gap=other("cumulative")
    ),
    "mistake_costs_late": Effect(
        BOTH | {"accuracy": mistake(3), "sizes": (16, 64, 256)},
        {"accuracy": mistake(-3)},
        accuracy=lambda row: 0.5 + 0.3 * sign(row) * (row["momentum"] == 0.9),
    ),
    "mistake_gains_early": Effect(
        BOTH | {"accuracy": mistake(-3)},
        {"accuracy": mistake(3)},
        accuracy=lambda row: 0.5 + 0.3 * sign(row) * (row["momentum"] == 0.9),
    ),
}


def test_a_prediction_from_other_seeds_needs_them() -> None:
    with pytest.raises(UserError, match="batch size 4, layer x has only seed 0; sweep several, such as seed=0,1"):
        decide("momentum", "theory_knows_momentum", estimators=GRID, seeds=(0,))
    tables = plant(GRID)
    lonely = {name: frame[frame["run"] != "256/3"] for name, frame in tables.items()}  # a missing network
    found = answers(EXPERIMENT, lonely)
    assert set(found[found["claim"] == "theory_knows_momentum"]["n"]) == {3, 4}
    assert len(answers(EXPERIMENT, plant(GRID[:1]))) > 0  # a single momentum
