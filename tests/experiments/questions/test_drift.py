"""Effects for the claims of `drift`, and its scores on numbers that can be read off."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnlab.theory import NO_NOISE
from experiments.questions.drift import (
    AFTER_PEAK,
    END,
    SHARES,
    moves,
    speeds,
)
from tests.experiments.planted import Effect, Value, alternate, decide, plant, score_claim

EXACT: dict[str, Any] = {"estimators": [("exact", None)], "shares": SHARES, "sizes": (256,)}
LAST = 2 * SHARES[-2]  # epochs


def slower(times: float) -> dict[str, Value]:
    """A mean that moves so many times as slowly at the end, by steps and by exact means."""

    def mean(row: dict[str, Any]) -> float:
        return (1 + row["seed"] / 50) * min(row["epoch"], LAST) + max(0, row["epoch"] - LAST) / times

    speed: Value = lambda row: 1e-3 * (1 + row["seed"] / 50) / (times**2 if row["epoch"] > LAST else 1)  # noqa: E731
    return {"mean_drift": speed, "mean": mean, "var": lambda row: 1.0}


def unclear(row: dict[str, Any], column: str) -> float:
    return slower(7.0 ** (1 + alternate(row)))[column](row)


def drifting(times: float, depth: float = 0) -> dict[str, Value]:
    """Ten steps that move the mean so many times as far as a batch scatters, farther with this power of depth."""
    return {
        "mean_noise": lambda row: 1.0,
        "mean_drift": lambda row: 0.1 * (times * row["depth"] ** (depth + row["seed"] / 100)) ** 2,
    }


def effect(holds: dict[str, Value], fails: dict[str, Value], noise: dict[str, Value]) -> Effect:
    return Effect(EXACT | {"values": holds}, {"values": fails}, values=noise)


NOISE: dict[str, Value] = {"mean_noise": lambda row: 1.0}
STALE = NOISE | {"mean_drift": lambda row: drifting(9.0 ** alternate(row))["mean_drift"](row)}
DEEPER = NOISE | {"mean_drift": lambda row: drifting(1, 3 * alternate(row))["mean_drift"](row)}
SLOWER: dict[str, Value] = {
    "mean_drift": lambda row: unclear(row, "mean_drift"),
    "mean": lambda row: unclear(row, "mean"),
    "var": lambda row: 1.0,
}
EFFECTS = {
    "follows_the_learning_rate": effect(slower(9), slower(2), SLOWER),
    "exact_means_agree": effect(slower(15), slower(2), SLOWER),
    "deeper_is_faster": effect(drifting(1, 1), drifting(1, -1), DEEPER),
    "memory_is_stale_early": effect(drifting(3), drifting(0.3), STALE),
    "memory_holds_late": effect(drifting(0.3), drifting(3), STALE),
}


def test_steps() -> None:
    """Roots of variances: of nine and four times, 3 and 2; ten steps move √10 times as far as one."""
    tables = plant(**EXACT, values={"mean_noise": lambda row: 4.0, "mean_drift": lambda row: 9.0 * row["depth"] ** 2})
    assert set(speeds(tables)["mean"]) == {3.0, 6.0, 9.0}
    np.testing.assert_allclose(score_claim("drift", "deeper_is_faster", tables)[["mean", "low", "high"]], 1.5)
    stale = score_claim("drift", "memory_holds_late", tables)
    np.testing.assert_allclose(stale["mean"], 10**0.5 * 1.5 * 6**0.5)
    shares = score_claim("drift", "follows_the_learning_rate", tables)
    np.testing.assert_allclose(shares[["mean", "low", "high"]], 1)


def test_epochs() -> None:
    """A mean of epoch², in units of σ = 2: 0.3 epochs from 0.4 to 0.7 at the speed of their sum, halved."""
    values: dict[str, Value] = {"mean": lambda row: row["epoch"] ** 2, "var": lambda row: 4.0}
    found = moves(plant(**EXACT, values=values), SHARES).groupby("panel")["move"].unique().explode()
    assert len(found) == len(SHARES) - 1, "the first has none before it"
    np.testing.assert_allclose([found[AFTER_PEAK], found[END]], [(0.4 + 0.7) / 2, (1.8 + 2.0) / 2])


def test_the_end_of_the_grid_is_no_ratio() -> None:
    """A layer of three is at the end of the fit's grid: its ratio says nothing, and that of the others is kept."""
    values: dict[str, Value] = {
        "mean_noise": lambda row: 1.0,
        "mean_drift": lambda row: 0.95 * NO_NOISE if row["depth"] == 2 else 0.4,
    }
    found = score_claim("drift", "memory_is_stale_early", plant(**EXACT, values=values))
    np.testing.assert_allclose(found[["mean", "n"]], [[2.0, 4]])
    values["mean_drift"] = lambda row: 0.95 * NO_NOISE
    assert decide("drift", "memory_is_stale_early", **EXACT, values=values) == ["not measured"]
