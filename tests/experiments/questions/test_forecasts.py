"""Effects for the claims of `forecasts`."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.questions.forecasts import CHOSEN, SCORES, find_times
from tests.experiments.planted import EMA, Effect, Value, plant

COMMON: dict[str, Any] = {
    "estimators": [*((name, None) for name in (*CHOSEN, *SCORES)), EMA, ("exact", None)],
}


def times(factor: float) -> Value:
    """A gap of all variants that is so many times that of `predictive`."""
    return lambda row: 0.1 * (1 if row["estimator"] == "predictive" else factor * (1 + row["seed"] / 200))


def larger(holds: float, fails: float) -> Effect:
    return Effect({**COMMON, "gap": times(holds)}, {"gap": times(fails)})


EFFECTS = {
    "score_is_no_matter": larger(1.0, 1.5),
    "choice_is_no_matter": larger(1.0, 1.5),
    "memory_mends_the_end": larger(0.6, 1.2),
    "memory_hurts_nowhere": larger(0.9, 1.3),
}


def test_gaps_are_drawn_over_that_of_the_best_momentum() -> None:
    common = COMMON | {"estimators": [EMA, ("ema", 0.01), ("predictive", None), ("exact", None)]}
    tables = plant(gap=lambda row: 0.3 if row["momentum"] == 0.1 else 0.2, **common)
    found = find_times(tables).groupby(["estimator", "momentum"], dropna=False)["mean_gap"].unique()
    assert [np.round(found[key], 9) for key in (("ema", 0.1), ("ema", 0.01))] == [1.5, 1.0]
