"""Effects for the claims of `forecasts`."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.questions.forecasts import SCORES, SHOWN, find_ratios
from tests.experiments.planted import EMA, Effect, Value, plant

COMMON: dict[str, Any] = {
    "estimators": [*((name, None) for name in ("predictive", *SHOWN, *SCORES)), EMA, ("exact", None)],
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


def test_gaps_are_drawn_over_that_of_predictive_momentum() -> None:
    found = find_ratios(plant(gap=times(3), **COMMON, seeds=(0,)))
    np.testing.assert_allclose(found["mean_gap"], 3)
    assert set(found["estimator"]) == set(SHOWN)
