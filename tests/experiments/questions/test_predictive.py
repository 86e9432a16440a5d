"""Effects for the claims of `predictive`, and its scores on numbers that can be read off."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.questions.predictive import find_times, score_accuracy
from tests.experiments.planted import EMA, accuracy_lost, gap_times, plant

FORECAST = ("predictive", None)
BANK: list[tuple[str, float | None]] = [("ema", 0.01), EMA, ("kalman(per=layer)", None), FORECAST]
SHARES = (0.1, 0.55, 1.0)


EFFECTS = {
    "near_the_best": gap_times("predictive", 1.02, 2, estimators=BANK),
    "nearer_than_others": gap_times("predictive", 0.5, 2, estimators=BANK),
    "as_accurate": accuracy_lost(FORECAST, -0.2, 3, estimators=BANK, shares=SHARES),
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
