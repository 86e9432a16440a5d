"""Effects for the claims of `unbiasing`."""

from __future__ import annotations

import math

from tests.experiments.planted import EMA, Effect, Value, accuracy_lost

Name = tuple[str, float | None]
BIASED: Name = ("ema_biased", 0.1)
POOLED, PRECISE, UPDATE, SWA = (("ema_pooled", 0.1), ("precise", None), ("update_bn", None), ("swa", None))
UNEVEN = (16, 64)


def scaled(estimator: Name, factor: float) -> Value:
    """A value that is so many times that of all others, by seed a little more or less."""
    return lambda row: factor * (1 + row["seed"] / 1000) if row["estimator"] == estimator[0] else 1.0


def changed(estimator: Name, holds: float, fails: float, against: Name, sizes: tuple[int, ...] = (2, 4)) -> Effect:
    """A value that is so many times another estimator's, where the claim holds and where it fails."""
    noise: Value = lambda row: math.exp((1 - 2 * (row["seed"] % 2)) * (row["estimator"] == estimator[0]))  # noqa: E731
    tables = {"estimators": [estimator, against], "gap": scaled(estimator, holds), "sizes": sizes}
    return Effect(tables, {"gap": scaled(estimator, fails)}, gap=noise)


EFFECTS = {
    "running_variance_is_low": changed(EMA, 0.7, 1.3, BIASED),
    "correction_is_small": changed(EMA, 1.005, 1.1, BIASED, (2, 4, 16, 64)),
    "correction_costs_nothing": accuracy_lost(EMA, -0.15, 3, against=BIASED, sizes=(2, 4, 16, 64)),
    "pooled_is_nearer": changed(POOLED, 0.5, 2, EMA),
    "pooled_is_nearer_when_frozen": changed(PRECISE, 0.5, 2, UPDATE),
    "pooling_gains": accuracy_lost(PRECISE, -3, 3, against=UPDATE, sizes=(2, 4)),
    "weights_change_nothing": changed(SWA, 1.001, 1.1, UPDATE, UNEVEN),
    "weights_cost_nothing": accuracy_lost(SWA, -0.15, 3, against=UPDATE, sizes=UNEVEN),
}
