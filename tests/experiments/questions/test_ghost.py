"""Effects for the claims of `ghost`."""

from __future__ import annotations

from typing import Any

from experiments.questions.ghost import SIZE, find_accuracies
from tests.experiments.planted import EMA, Effect, Setting, Value, alternate, plant

EXACT: Setting = ("exact", None)
BATCHES: list[Setting] = [(f"test_batch(n={n})", None, "test") for n in (2, 32, 256)]
COMMON: dict[str, Any] = {
    "estimators": [EMA, EXACT, *BATCHES],
    "sizes": (256,),
    "shares": (1.0,),
    "settings": {SIZE: (2, 32, 256)},
}


def effect(chosen: Any, holds: float, fails: float) -> Effect:
    """Points that the chosen rows gain against all others, or lose; as many for half of the seeds in the last case."""

    def gain(points: float, noise: float = 0) -> Value:
        return lambda row: 0.5 + (points + row["seed"] / 50 + noise * alternate(row)) / 100 * chosen(row)

    return Effect({**COMMON, "accuracy": gain(holds)}, {"accuracy": gain(fails)}, accuracy=gain(0, 30))


EFFECTS = {
    "thirty_two_is_best": effect(lambda row: row[SIZE] == 32, 3, -3),
    "tiny_parts_are_not_rescued": effect(lambda row: row[SIZE] == 2, -3, 3),
    "running_averages_fail_when_tiny": effect(lambda row: row["estimator"] == "ema", -3, 0),
    "running_averages_serve_when_large": effect(lambda row: row["estimator"] == "ema", 0, -3),
    "population_wins_when_large": effect(lambda row: row["estimator"] == "exact", 3, -3),
    "batches_win_when_tiny": effect(lambda row: row["estimator"] == "exact", -3, 3),
}


def test_test_batches_are_as_large_as_the_parts() -> None:
    found = find_accuracies(plant(accuracy=lambda row: len(row["estimator"]) / 100, **COMMON))
    assert len(found) == 3 * 3 * 4 and set(found["estimator"]) == {"ema", "exact", "test_batch"}
    batches = found[found["estimator"] == "test_batch"]
    names = [len(f"test_batch(n={size})") / 100 for size in batches[SIZE]]
    assert batches["accuracy"].to_list() == names


def test_other_rules_are_no_test_batches() -> None:
    rules: list[Setting] = [("eval_norm(batch=32)", None, "test"), ("pseudo_samples(n=16.0,batch=32)", None, "test")]
    found = find_accuracies(plant(**{**COMMON, "estimators": [EMA, EXACT, *rules]}))
    assert "test_batch" not in set(found["estimator"])
