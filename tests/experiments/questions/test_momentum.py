"""Effects for the claims of `momentum`."""

from __future__ import annotations

import math
from typing import Any

from bnlab.harness.reporting.frames import rows
from experiments.questions.momentum import EARLY
from tests.experiments.planted import EMA, Effect, Value, reference, sign


def bend(ends: float) -> Value:
    """A gap that is so many times as large at the ends of the sweep as between them."""
    return lambda row: 0.1 * (1 + row["seed"] / 50) * (ends if row["momentum"] in (0.001, 1.0) else 1)


def spread(row: dict[str, Any]) -> float:
    """A gap of the ends that is far above the others' for half of the seeds, and far below for the rest."""
    return math.exp(sign(row) * (row["momentum"] in (0.001, 1.0)) + 0.2)


def plain(factor: float) -> Value:
    """A gap of the average of all batches that is so many times PyTorch's."""
    return lambda row: 0.1 * (factor * (1 + row["seed"] / 50) if row["estimator"] == "cumulative" else 1)


def spread_plain(row: dict[str, Any]) -> float:
    """The same, far above 1 for half of the seeds, and far below for the rest."""
    return 0.1 * math.exp((1 - 2 * (row["seed"] % 2)) * (row["estimator"] == "cumulative"))


def mistake(points: float) -> Value:
    """Accuracy that is so many points lower at a momentum of 0.9."""
    return lambda row: 0.9 - (points + row["seed"] / 10) / 100 * (row["momentum"] == 0.9)


BOTH: dict[str, Any] = {"estimators": [EMA, ("ema", 0.9)]}
PLAIN: dict[str, Any] = {"estimators": [EMA, ("cumulative", None)]}

EFFECTS = {
    "gap_is_u_shaped": Effect(
        {"estimators": [("ema", 0.001), EMA, ("ema", 1.0)], "gap": bend(3)}, {"gap": bend(0.3)}, gap=spread
    ),
    "plain_average_is_farther": Effect(PLAIN | {"gap": plain(9)}, {"gap": plain(0.1)}, gap=spread_plain),
    "mistake_costs_late": Effect(
        BOTH | {"accuracy": mistake(3), "sizes": (16, 64, 256)},
        {"accuracy": mistake(-3)},
        accuracy=lambda row: 0.5 + 0.3 * sign(row) * (row["momentum"] == 0.9),
    ),
    "mistake_gains_early": Effect(
        BOTH | {"accuracy": mistake(-3)},
        {"accuracy": mistake(3)},
        accuracy=lambda row: 0.5 + 0.3 * sign(row) * (row["momentum"] == 0.9),
    ),
}


def test_few_images_are_right_early_at_batch_256() -> None:
    """As the experiment's source says: fewer than one in five."""
    early = rows(reference("momentum"), "evaluations", (EARLY,), estimator="exact", batch_size=256)
    assert len(early) and early["accuracy"].max() < 0.2
