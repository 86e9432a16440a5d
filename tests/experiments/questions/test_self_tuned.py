"""Effects for the claims of `self_tuned`, and what is drawn of the choices."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.questions.self_tuned import find_gains_in_hindsight, score_choices
from tests.experiments.planted import EMA, accuracy_lost, gap_times, plant

FORECAST = ("predictive", None)
BANK: list[tuple[str, float | None]] = [("ema", 0.01), EMA, ("cumulative", None), FORECAST, ("exact", None)]
SCHEDULES = ("onecycle", "step")
COMMON: dict[str, Any] = {
    "estimators": BANK,
    "shares": (0.03, 0.1, 0.55, 1.0),
    "settings": {"optimizer.schedule": SCHEDULES},
}


EFFECTS = {
    "never_worse": accuracy_lost(FORECAST, -0.5, 3, **COMMON),
    "better_early": accuracy_lost(FORECAST, -8, -1, **COMMON),
    "as_good_as_in_hindsight": accuracy_lost(FORECAST, -0.5, 3, **COMMON),
    "near_the_best": gap_times("predictive", 1.02, 2, **COMMON),
    "late_where_the_rate_ends": gap_times("predictive", 2, 1.02, **COMMON),
}


def test_the_best_momentum_in_hindsight_is_one_for_a_schedule_and_batch_size() -> None:
    best = {("onecycle", 4): 0.01, ("onecycle", 256): 0.1, ("step", 4): 0.1, ("step", 256): 0.01}

    def accuracy(row: dict[str, Any]) -> float:
        return 0.5 + 0.25 * (row["momentum"] == best[row["optimizer.schedule"], row["batch_size"]])

    tables = plant(accuracy=accuracy, **COMMON)
    np.testing.assert_allclose(find_gains_in_hindsight(tables)["accuracy"], -0.25)


def test_choices_are_drawn_beside_the_learning_rate() -> None:
    tables = plant(values={"chosen": lambda row: 0.1 * row["depth"]}, **COMMON)
    drawn = score_choices("mean")(tables)
    assert set(drawn["panel"]) == {f"{name}, batch size {size}" for name in SCHEDULES for size in (4, 256)}
    one = drawn[drawn["panel"] == "step, batch size 4"].set_index(["line", "epoch"])["mean"]
    assert np.isclose(one["layer 3", 2.0], 0.3)
    np.testing.assert_allclose(one["learning rate / its peak"], [1, 1, 0.1, 0.01])
    assert (drawn["mean"] > 0).all()  # a rate of 0 has no place on a logarithmic axis
