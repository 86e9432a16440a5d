"""Effects for the claims of `batch_traces`."""

from __future__ import annotations

from tests.experiments.planted import EMA, Effect, Value, alternate

ALL = [("last_batch", None), EMA, ("exact", None)]


def means(times: float) -> dict[str, Value]:
    """A single batch so many times as far from 0 as the EMA."""
    far = {"last_batch": times, "ema": 1.0, "exact": 0.0}
    return {"mean": lambda row: far[row["estimator"]] * (1 + row["seed"] / 50), "var": lambda row: 1.0}


def moving(distance: float) -> dict[str, Value]:
    """Means that move so far in training."""
    return {"mean": lambda row: distance * row["step"] / 900 * (1 + row["seed"] / 50), "var": lambda row: 1.0}


EFFECTS = {
    "batches_scatter": Effect(
        {"estimators": ALL, "values": means(3)},
        {"values": means(0.3)},
        values={"mean": lambda row: means(3.0 ** alternate(row))["mean"](row), "var": lambda row: 1.0},
    ),
    "population_moves": Effect(
        {"estimators": ALL, "values": moving(1)},
        {"values": moving(0.01)},
        values={
            "mean": lambda row: (1 + alternate(row)) / 9 * row["step"] / 900,
            "var": lambda row: 1.0,
        },
    ),
}
