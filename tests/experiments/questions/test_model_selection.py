"""Effects for the claims of `model_selection`, and its picks on curves that can be read off."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.questions.model_selection import find_picks
from tests.experiments.planted import EMA, Effect, Value, alternate, decide, plant, score_claim

ALL = [EMA, ("predictive", None), ("exact", None)]
SHARES = (0.1, 0.2, 0.55, 1.0)  # of 1,000 steps


def curves(cost: float = 0.0, low: float = 0.0, noise: float = 0.0, **peaks: int) -> Value:
    """Validation accuracies with their highest value at a step, that of exact at 550.

    Args:
        cost: points of test accuracy that all steps but 550 lose.
        low: points by which the EMA's validation accuracy lies lower.
        noise: points that are added to both for half of the seeds, and subtracted for the others.
        peaks: of an estimator, its step for all seeds.
    """

    def accuracy(row: dict[str, Any]) -> float:
        around = alternate(row) * noise + row["seed"] / 50
        if row["split"] == "test":
            return 0.8 - (cost + around) / 100 * (row["step"] != 550)
        peak = {"exact": 550, **peaks}.get(row["estimator"], 550)
        return 0.5 + 0.1 * (row["step"] == peak) - (low + around) / 100 * (row["estimator"] == "ema")

    return accuracy


def halves(row: dict[str, Any]) -> float:
    """All but exact pick another checkpoint for half of the seeds."""
    peak = 200 if row["seed"] % 2 else 550
    return curves(ema=peak, predictive=peak)(row)


def effect(holds: Value, fails: Value, unclear: Value, seeds: int = 4) -> Effect:
    common = {"estimators": ALL, "shares": SHARES, "splits": ("val", "test"), "seeds": range(seeds)}
    return Effect({**common, "accuracy": holds}, {"accuracy": fails}, accuracy=unclear)


OTHER = {"ema": 200, "predictive": 200}
COSTS = effect(curves(0.1, **OTHER), curves(3, **OTHER), curves(noise=30, **OTHER))
SAME = effect(curves(), curves(**OTHER), halves, seeds=8)  # four of four are no more than chance
EFFECTS = {
    "last_is_not_best": effect(curves(3), curves(-3), curves(noise=30)),
    "ema_shows_less": effect(curves(low=3), curves(low=-3), curves(noise=30)),
    "ema_picks_as_well": COSTS,
    "predictive_picks_as_well": COSTS,
    "ema_picks_the_same": SAME,
    "predictive_picks_the_same": SAME,
}


def test_picks() -> None:
    """The first of the highest points; what it costs is of the test split under exact statistics."""

    def accuracy(row: dict[str, Any]) -> float:
        if row["split"] == "test":
            return (0.5 if row["estimator"] == "exact" else 0.1) + row["step"] / 10_000
        highest = {"ema": (100, 200), "predictive": (1000,), "exact": (550, 1000)}[row["estimator"]]
        return 0.9 if row["step"] in highest else 0.8

    picks = find_picks(plant(ALL, accuracy=accuracy, shares=SHARES, splits=("val", "test"), seeds=(0,), sizes=(4,)))
    found = picks.set_index("estimator")[["step", "cost", "same"]]
    assert found["step"].to_dict() == {"ema": 100, "predictive": 1000, "exact": 550, "last": 1000}
    assert found["cost"].to_dict() == pytest.approx({"ema": 0.045, "predictive": -0.045, "exact": 0, "last": -0.045})
    assert found["same"].to_dict() == {"ema": 0, "predictive": 0, "exact": 1, "last": 0}


def test_what_the_ema_shows_is_of_the_validation_split() -> None:
    tables = plant(ALL, accuracy=lambda row: 0.1 * ((row["split"], row["estimator"]) == ("val", "ema")),
                   shares=SHARES, splits=("val", "test"))  # fmt: skip
    assert score_claim("model_selection", "ema_shows_less", tables)["mean"].tolist() == pytest.approx([-10, -10])


@pytest.mark.parametrize(("seeds", "verdict"), [(5, "undecided"), (6, "holds")])
def test_six_networks_that_agree_decide_what_most_do(seeds: int, verdict: str) -> None:
    """As the reason of the claims' margin says."""
    tables = EFFECTS["ema_picks_the_same"].holds | {"seeds": range(seeds)}
    assert decide("model_selection", "ema_picks_the_same", **tables) == [verdict] * 2
