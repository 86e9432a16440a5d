"""Effects for the claims of `non_iid`."""

from __future__ import annotations

from typing import Any

from experiments.questions.non_iid import find_accuracies, find_losses
from tests.experiments.planted import EMA, Effect, accuracy_lost, alternate, gap_times, plant

EXACT, ALL = ("exact", None), ("cumulative", None)
COMMON: dict[str, Any] = {"sizes": (64,), "settings": {"order": ("shuffled", "sorted", "blocks:16")}}


def lost(row: dict[str, Any], points: float) -> float:
    return 0.9 - (points + 0.1 * row["seed"]) / 100 * (row["order"] != "shuffled")


EFFECTS = {
    "running_average_costs": accuracy_lost(EMA, 20, 1, **COMMON),
    "nothing_rescues": Effect(
        {**COMMON, "estimators": [EMA, EXACT], "accuracy": lambda row: lost(row, 20)},
        {"accuracy": lambda row: lost(row, 1)},
        accuracy=lambda row: 0.5 + 0.3 * alternate(row) * (row["order"] != "shuffled"),
    ),
    "long_memory_is_nearer": gap_times("ema", 3, 0.5, estimators=[EMA, ALL, EXACT], **COMMON),
}


def test_losses_are_against_shuffled_images() -> None:
    found = find_losses(plant([EXACT], accuracy=lambda row: lost(row, 10), **COMMON))
    assert len(found) == 8 and found["accuracy"].between(-0.104, -0.0999).all()


def test_an_order_that_is_not_asked_of_has_a_panel_of_its_own() -> None:
    tables = plant([EXACT], sizes=(64,), settings={"order": ("blocks:32", "shuffled")})
    assert list(find_accuracies(tables)["panel"].unique()) == ["shuffled", "blocks:32"]
