"""Effects for the claims of `predictive`, and its scores on numbers that can be read off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments.questions.predictive import find_times, score_accuracy
from tests.experiments.planted import EMA, Effect, Value, plant

BANK: list[tuple[str, float | None]] = [("ema", 0.01), EMA, ("kalman(per=layer)", None), ("predictive", None)]
SHARES = (0.1, 0.55, 1.0)


def nearer(factor: float) -> Value:
    """A gap of the forecast that is so many times that of all others."""
    return lambda row: 0.1 * (factor * (1 + row["seed"] / 50) if row["estimator"] == "predictive" else 1)


def unclear(row: dict[str, Any]) -> float:
    """A gap of the forecast that is far larger than the others' for half of the seeds, and far smaller for the rest."""
    return 0.1 * math.exp((1 - 2 * (row["seed"] % 2)) * (row["estimator"] == "predictive"))


def lose(points: float) -> Value:
    """Accuracy of the forecast that is so many points below that of all momenta."""
    return lambda row: 0.9 - (points + row["seed"] / 10) / 100 * (row["estimator"] == "predictive")


EFFECTS = {
    "near_the_best": Effect({"estimators": BANK, "gap": nearer(1.02)}, {"gap": nearer(2)}, gap=unclear),
    "nearer_than_others": Effect({"estimators": BANK, "gap": nearer(0.5)}, {"gap": nearer(2)}, gap=unclear),
    "as_accurate": Effect(
        {"estimators": BANK, "accuracy": lose(-0.2), "shares": SHARES},
        {"accuracy": lose(3)},
        accuracy=lambda row: 0.5 + 0.3 * (1 - 2 * (row["seed"] % 2)) * (row["estimator"] == "predictive"),
    ),
}


def test_the_best_momentum_is_that_of_the_layer_and_step() -> None:
    def gap(row: dict[str, Any]) -> float:
        best = 0.01 if row["layer"] == "x" else 0.1
        return 1.0 if row["momentum"] == best else 6.0 if row["estimator"] == "predictive" else 3.0

    times = find_times(plant(BANK, gap))
    assert set(times[times["estimator"] == "predictive"]["mean_gap"]) == {6.0}
    ema = times[times["estimator"] == "ema"].groupby(["layer", "momentum"])["mean_gap"].unique().explode()
    others = {(layer, momentum): times for layer in "yz" for momentum, times in ((0.01, 3), (0.1, 1))}
    assert ema.to_dict() == {("x", 0.01): 1, ("x", 0.1): 3, **others}


def test_the_most_accurate_momentum_is_that_of_the_batch_size() -> None:
    best = {4: 0.01, 256: 0.1}
    tables = plant(BANK, accuracy=lambda row: 0.5 + 0.25 * (row["momentum"] == best[row["batch_size"]]), shares=SHARES)
    np.testing.assert_allclose(score_accuracy(tables)[["mean", "low", "high"]], 25)
