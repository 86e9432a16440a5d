"""Effects for the claims of `momentum`."""

from __future__ import annotations

import math
from typing import Any

from bnlab.harness.reporting.frames import rows
from experiments.questions.momentum import EARLY
from tests.experiments.planted import EMA, Effect, Value, gap_times, reference, sign


def bend(ends: float) -> Value:
    """A gap that is so many times as large at the ends of the sweep as between them."""
    return lambda row: 0.1 * (1 + row["seed"] / 50) * (ends if row["momentum"] in (0.001, 1.0) else 1)


def spread(row: dict[str, Any]) -> float:
    """A gap of the ends that is far above the others' for half of the seeds, and far below for the rest."""
    return math.exp(sign(row) * (row["momentum"] in (0.001, 1.0)) + 0.2)


def mistake(points: float) -> Value:
    """Accuracy that is so many points lower at a momentum of 0.9."""
    return lambda row: 0.9 - (points + row["seed"] / 10) / 100 * (row["momentum"] == 0.9)


def costs(points: float, **networks: Any) -> Effect:
    """So many points at a momentum of 0.9, and as many gained where the claim fails."""
    unclear: Value = lambda row: 0.5 + 0.3 * sign(row) * (row["momentum"] == 0.9)  # noqa: E731
    tables = {"estimators": [EMA, ("ema", 0.9)], "accuracy": mistake(points), **networks}
    return Effect(tables, {"accuracy": mistake(-points)}, accuracy=unclear)


EFFECTS = {
    "gap_is_u_shaped": Effect(
        {"estimators": [("ema", 0.001), EMA, ("ema", 1.0)], "gap": bend(3)}, {"gap": bend(0.3)}, gap=spread
    ),
    "plain_average_is_farther": gap_times("cumulative", 9, 0.1, estimators=[EMA, ("cumulative", None)]),
    "mistake_costs_late": costs(3, sizes=(16, 64, 256)),
    "mistake_gains_early": costs(-3),
}


def test_few_images_are_right_early_at_batch_256() -> None:
    """As the experiment's source says: fewer than one in five."""
    early = rows(reference("momentum"), "evaluations", (EARLY,), estimator="exact", batch_size=256)
    assert len(early) and early["accuracy"].max() < 0.2
