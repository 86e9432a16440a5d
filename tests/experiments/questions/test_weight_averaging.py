"""Effects for the claims of `weight_averaging`."""

from __future__ import annotations

from typing import Any

from experiments.questions.weight_averaging import find_gains
from tests.experiments.planted import Effect, accuracy_lost, alternate, plant

COMMON: dict[str, Any] = {
    "sizes": (64,),
    "settings": {"averaging": ("none", "swa", "ema")},
}
STALE, AVERAGED, EXACT = ("stale", None), ("averaged", None), ("exact", None)


def gained(row: dict[str, Any], points: float) -> float:
    return 0.8 + (points + 0.1 * row["seed"]) / 100 * (row["averaging"] != "none")


def lost(row: dict[str, Any], points: float) -> float:
    """Averaged weights lose so many points more under stale statistics than others do."""
    here = row["estimator"] == "stale"
    return 0.9 - here * (0.02 + (points + 0.1 * row["seed"]) / 100 * (row["averaging"] != "none"))


EFFECTS = {
    "stale_statistics_cost_more": Effect(
        {**COMMON, "estimators": [STALE, EXACT], "accuracy": lambda row: lost(row, 2)},
        {"accuracy": lambda row: lost(row, -2)},
        accuracy=lambda row: lost(row, 30 * alternate(row)),
    ),
    "stale_statistics_cost": accuracy_lost(STALE, 5, 0, **COMMON),
    "averaged_buffers_are_enough": accuracy_lost(AVERAGED, -0.15, 5, **COMMON),
    "averaging_gains": Effect(
        {**COMMON, "estimators": [EXACT], "accuracy": lambda row: gained(row, 2)},
        {"accuracy": lambda row: gained(row, -2)},
        accuracy=lambda row: 0.5 + 0.3 * alternate(row) * (row["averaging"] != "none"),
    ),
}


def test_gains_are_those_of_the_same_seed() -> None:
    found = find_gains(plant([EXACT], accuracy=lambda row: gained(row, 3), **COMMON))
    assert len(found) == 8 and set(found["averaging"]) == {"swa", "ema"}
    assert (found["accuracy"].between(0.0299, 0.034)).all()
