"""Effects for the claims of `start`."""

from __future__ import annotations

import math
from typing import Any

from bnlab.harness.reporting.frames import rows
from tests.experiments.planted import Effect, Value, accuracy_lost, reference

BOTH: dict[float, Any] = {m: {"estimators": [("ema", m), ("ema_debiased", m)]} for m in (0.01, 0.1)}


def farther(factor: float) -> Value:
    """A gap of the plain EMA that is so many times that of the corrected one."""
    return lambda row: 0.1 * (factor * (1 + row["seed"] / 50) if row["estimator"] == "ema" else 1)


def unclear(row: dict[str, Any]) -> float:
    """A gap of the plain EMA that is far larger for half of the seeds, and far smaller for the rest."""
    return 0.1 * math.exp((1 - 2 * (row["seed"] % 2)) * (row["estimator"] == "ema"))


def gap(momentum: float, *steps: int) -> Effect:
    return Effect(
        BOTH[momentum] | {"gap": farther(2), "sizes": (64,), "steps": steps}, {"gap": farther(0.5)}, gap=unclear
    )


def cost(momentum: float, points: float, other: float, *steps: int) -> Effect:
    return accuracy_lost(("ema", momentum), points, other, against=("ema_debiased", momentum), sizes=(64,), steps=steps)


EFFECTS = {
    "start_is_far": gap(0.1, 10),
    "start_stays_far": gap(0.01, 10, 30, 100),
    "start_costs": cost(0.01, 3, -3, 100),
    "start_is_forgotten": cost(0.1, -0.15, 3, 100, 300, 1000),
}


def test_networks_of_10_steps_are_near_chance() -> None:
    """As a caption says: they are right on fewer than twice as many images as one in 36."""
    short = rows(reference("start"), "evaluations", (1.0,), by=("steps",), steps=10)
    assert len(short) and short.groupby("estimator")["accuracy"].mean().max() < 2 / 36
