"""Effects for the claims of `start`."""

from __future__ import annotations

from bnlab.harness.reporting.frames import rows
from tests.experiments.planted import Effect, accuracy_lost, gap_times, reference


def gap(momentum: float, *steps: int) -> Effect:
    both = [("ema", momentum), ("ema_debiased", momentum)]
    return gap_times("ema", 2, 0.5, estimators=both, sizes=(64,), steps=steps)


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
