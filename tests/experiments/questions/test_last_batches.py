"""Effects for the claims of `last_batches`."""

from __future__ import annotations

from tests.experiments.planted import EMA, Effect, Value, alternate

SHARES = (1.0,)
FORECAST, KALMAN = ("predictive", None), ("kalman(per=layer)", None)


def effect(column: str, holds: float, fails: float, *estimators: tuple[str, float | None]) -> Effect:
    """Values of the first estimator, by seed a little more or less; all others have 0.5."""
    first = estimators[0]
    noise: Value = lambda row: 0.5 + (0.49 * alternate(row) if row["estimator"] == first[0] else 0)  # noqa: E731
    planted: list[Value] = [
        lambda row, value=value: value + row["seed"] / 1e4 if row["estimator"] == first[0] else 0.5  # type: ignore[misc]
        for value in (holds, fails)
    ]
    tables = {"estimators": estimators, "shares": SHARES, "values": {column: planted[0]}}
    return Effect(tables, {"values": {column: planted[1]}}, values={column: noise})


EFFECTS = {
    "few_batches_make_it": effect("followed", 0.8, 0.2, EMA),
    "one_batch_is_little": effect("moved", 0.02, 0.3, EMA),
    "stable_is_slow": effect("followed", 0.4, 0.9, ("ema", 0.01)),
    "forecast_is_steadier": effect("moved", 0.1, 0.9, FORECAST, EMA),
    "forecast_follows_faster": effect("followed", 0.9, 0.1, FORECAST, EMA),
    "forecast_follows_faster_than_kalman": effect("followed", 0.9, 0.1, FORECAST, KALMAN),
}
