"""Effects for the claims of `activations`."""

from __future__ import annotations

import math

import pytest

from tests.experiments.planted import EMA, Effect, Setting, Value, plant, score_claim, sign


def misplaced(share: float) -> dict[str, Value]:
    """A share of the EMA's values in the right of two bins that exact statistics put in the left."""

    def value(row: dict[str, object]) -> float:
        moved = (share + 0.001 * int(str(row["seed"]))) * (row["estimator"] == "ema")
        return 0.5 + (moved if row["left"] == 0 else -moved)

    return {"share": value}


def effect(holds: float, fails: float, share: float) -> Effect:
    common = {"estimators": [EMA, ("exact", None)], "sizes": (256,), "shares": (share,)}
    wide = {"share": lambda row: misplaced(0.05 + 0.05 * sign(row))["share"](row)}
    return Effect({**common, "values": misplaced(holds)}, {"values": misplaced(fails)}, values=wide)


EFFECTS = {"other_early": effect(0.2, 0.01, 0.03), "same_late": effect(0.01, 0.2, 1.0)}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("ema", 0.01), r"momentum 0\.01, 0\.1|momentum 0\.1, 0\.01"),
        (("exact", None, "val"), r"mix rows of several values of statistics_split"),
    ],
)
def test_shares_of_several_averages_are_not_added_up(more: Setting, told: str) -> None:
    tables = plant([EMA, ("exact", None), more], values=misplaced(0.1), sizes=(256,), shares=(1.0,))
    with pytest.raises(ValueError, match=told):
        score_claim("activations", "same_late", tables)


def test_a_network_without_shares_does_not_count() -> None:
    tables = plant([EMA, ("exact", None)], values=misplaced(0.1), sizes=(256,), shares=(1.0,))
    frame = tables["histograms"]
    frame.loc[(frame["run"] == frame["run"].iloc[0]) & (frame["estimator"] == "ema"), "share"] = math.nan
    (found,) = score_claim("activations", "same_late", tables).to_dict("records")
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(0.102), "of seeds 1, 2 and 3"
