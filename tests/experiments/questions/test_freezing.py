"""Effects for the claims of `freezing`."""

from __future__ import annotations

from typing import Any

from experiments.questions.freezing import find_gains
from tests.experiments.planted import EMA, Effect, accuracy_lost, alternate, plant

EXACT = ("exact", None)
COMMON: dict[str, Any] = {"settings": {"freeze_with": ("none", "ema", "exact")}}


def gained(row: dict[str, Any], points: float) -> float:
    return 0.8 + (points + 0.1 * row["seed"]) / 100 * (row["freeze_with"] != "none")


EFFECTS = {
    "freezing_changes_little": Effect(
        {**COMMON, "estimators": [EMA, EXACT], "accuracy": lambda row: gained(row, 0)},
        {"accuracy": lambda row: gained(row, 9)},
        accuracy=lambda row: 0.5 + 0.3 * alternate(row) * (row["freeze_with"] != "none"),
    ),
    "frozen_averages_hold_no_gap": accuracy_lost(EMA, -1, 4, **COMMON),
}


def test_gains_are_those_of_the_same_seed_and_batch_size() -> None:
    found = find_gains(plant([EMA, EXACT], accuracy=lambda row: gained(row, 3), **COMMON))
    assert len(found) == 16 and found["accuracy"].between(0.0299, 0.0331).all()
