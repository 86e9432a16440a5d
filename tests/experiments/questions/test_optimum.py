"""Effects for the claims of `optimum`; theory sees other seeds."""

from __future__ import annotations

import math

import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.experiment import answers
from experiments.questions.optimum import EXPERIMENT, compare_choices, score_optimum
from tests.experiments.planted import Effect, Value, decide, plant, sign, swing

GRID = [("ema", 0.9 * 1.3**-k) for k in range(12)]


def best_at(momentum: float) -> Value:
    """A gap with its minimum there. Theory puts it at 0.62 for as much drift as noise, once the start is forgotten."""
    return lambda row: 0.1 + abs(math.log((row["momentum"] or 1) * (1 + row["seed"] / 50) / momentum))


def choose(factor: float) -> Value:
    """A gap of all momenta, lowest where theory expects it, and the forecast's: so many times the lowest."""
    return lambda row: factor * (1 + row["seed"] / 50) * 0.1 if row["estimator"] == "predictive" else best_at(0.6)(row)


CHOICE = Effect(
    {"estimators": [*GRID, ("predictive", None)], "gap": choose(0.1)}, {"gap": choose(50)}, gap=swing("predictive")
)

EFFECTS = {
    "theory_knows_momentum": Effect(
        {"estimators": GRID, "gap": best_at(0.6)},
        {"gap": best_at(0.06)},
        gap=lambda row: best_at(0.6 if sign(row) > 0 else 0.1)(row),
    ),
    "forecast_beats_theory": CHOICE,
    "forecast_is_as_good_as_hindsight": CHOICE,
}


def test_a_theory_beyond_the_momenta_of_a_sweep_is_taken_at_their_end() -> None:
    """It puts the best momentum at 0.62: between those of the grid, above all of its smaller ones."""
    for grid in (GRID, GRID[4:]):
        tables = plant([*grid, ("predictive", None)], choose(1))
        found = compare_choices(tables)
        assert len(found) == len(score_optimum(tables)) == 3 * 2 * 4 * 3, "each layer of each network"
    assert found["theory"].tolist() == pytest.approx([1.0] * len(found)), "the best of those that there are"


def test_a_prediction_from_other_seeds_needs_them() -> None:
    with pytest.raises(UserError, match="batch size 4, layer x has only seed 0; sweep several, such as seed=0,1"):
        decide("optimum", "theory_knows_momentum", estimators=GRID, seeds=(0,))
    tables = plant(GRID)
    lonely = {name: frame[frame["run"] != "256/3"] for name, frame in tables.items()}  # a missing network
    found = answers(EXPERIMENT, lonely)
    assert set(found[found["claim"] == "theory_knows_momentum"]["n"]) == {3, 4}
    assert len(answers(EXPERIMENT, plant(GRID[:1]))) > 0  # a single momentum
