"""Effects for the claims of `discrepancy`."""

from __future__ import annotations

from typing import Any

from tests.experiments.planted import EMA, Effect, Value, alternate

BOTH: dict[str, Any] = {"estimators": [EMA, ("exact", None)]}


def scaled(estimator: str, factor: float) -> Value:
    """A distance of 0.1 that is so many times as large for one estimator."""
    return lambda row: 0.1 * (factor * (1 + row["seed"] / 100) if row["estimator"] == estimator else 1)


def planted(estimator: str, holds: float, fails: float, *sizes: int) -> Effect:
    def noise(row: dict[str, Any]) -> float:
        return 0.1 * (1 + 0.9 * alternate(row) if row["estimator"] == estimator else 1)

    tables = BOTH | {"gap": scaled(estimator, holds), "sizes": sizes}
    return Effect(tables, {"gap": scaled(estimator, fails)}, gap=noise)


EFFECTS = {
    "ema_adds_early": planted("ema", 2, 0.5, 1024),
    "ema_adds_nothing_late": planted("ema", 0.99, 2, 4, 64),
    "tiny_batches_differ": planted("exact", 3, 0.3, 4),
    "huge_batches_agree": planted("exact", 0.3, 3, 1024),
}
