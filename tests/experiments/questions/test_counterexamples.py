"""Effects for the claims of `counterexamples`."""

from __future__ import annotations

import numpy as np

from experiments.questions.counterexamples import score_both
from tests.experiments.planted import EMA, Effect, Value, alternate, plant, sign

SHARES = (1.0,)
FORECAST, KALMAN, LAST = (("predictive", None), ("kalman(per=layer)", None), ("last_batch", None))
WEIGHTED = ("cumulative_weighted", None)


def effect(holds: Value, fails: Value, noise: Value, *estimators: tuple[str, float | None]) -> Effect:
    """Errors; all a little larger for larger seeds."""
    first, second = ({"error": lambda row, value=value: value(row) * (1 + row["seed"] / 1e4)}
                     for value in (holds, fails))  # fmt: skip
    tables = {"estimators": estimators, "shares": SHARES}
    return Effect({**tables, "values": first}, {"values": second}, values={"error": noise})


def level(holds: float, fails: float, estimator: tuple[str, float | None]) -> Effect:
    """An error at all sizes."""
    return effect(lambda row: holds, lambda row: fails, lambda row: (holds + fails) / 2 * 3 ** (9 * alternate(row)),
                  estimator)  # fmt: skip


def times(holds: float, fails: float, other: tuple[str, float | None]) -> Effect:
    """So many times another average's error in the EMA's."""
    first, second = (lambda row, many=many: many if row["estimator"] == "ema" else 1.0 for many in (holds, fails))
    return effect(first, second, lambda row: 3.0 ** (alternate(row) * (row["estimator"] == "ema")), EMA, other)


EFFECTS = {
    "error_is_unbounded": effect(
        lambda row: row["size"], lambda row: row["size"] ** 0.5, lambda row: row["size"] ** (1 + sign(row)), EMA
    ),
    "forecast_recovers": level(0.2, 10, FORECAST),
    "kalman_comes_too_late": level(90, 10, KALMAN),
    "no_average_knows": level(60, 10, FORECAST),
    "images_count_alike": level(1e-9, 0.1, WEIGHTED),
    "order_undoes_averaging": times(2, 0.5, LAST),
    "forecast_takes_order_for_drift": times(0.5, 2, FORECAST),
}


def test_the_average_that_is_best_in_its_worse_case() -> None:
    """The EMA has the smaller error in one of both, and the larger one in the other."""
    of_ema = {"jump_1": 90.0, "rare": 10.0}
    error: Value = lambda row: of_ema.get(row["case"], 0) if row["estimator"] == "ema" else 70.0  # noqa: E731
    found = score_both(plant([EMA, FORECAST], values={"error": error}, shares=SHARES))
    np.testing.assert_allclose(found["mean"], 70)
