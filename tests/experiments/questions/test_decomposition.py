"""Effects for the claims of `decomposition`, and its shares by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bnlab.decomposition import TERMS
from experiments.questions.decomposition import score_share, score_terms
from tests.experiments.planted import EMA, Effect, Value, alternate, plant


def part(term: str, share: float) -> dict[str, Value]:
    """A term that is this share of all, by seed a little more; the other terms are alike."""

    def value(row: dict[str, Any]) -> float:
        own = share + row["seed"] / 1000
        return own if row["term"] == term else (1 - own) / (len(TERMS) - 1)

    return {"contribution": value}


def effect(term: str, holds: float, fails: float, bound: float, **tables: Any) -> Effect:
    noise: dict[str, Value] = {
        "contribution": lambda row: part(term, bound + 0.4 * alternate(row))["contribution"](row)
    }
    return Effect({"estimators": [EMA], "values": part(term, holds), **tables}, {"values": part(term, fails)},
                  values=noise)  # fmt: skip


EFFECTS = {
    "lag_early": effect("lag", 0.8, 0.2, 0.5, sizes=(256,), shares=(0.2,)),
    "noise_late": effect("noise", 0.8, 0.2, 0.5, sizes=(16,), shares=(1.0,)),
    "upstream_is_small": effect("upstream", 0.02, 0.3, 0.0, sizes=(16, 256), shares=(0.2, 1.0)),
}


def test_shares_add_up_to_one() -> None:
    tables = plant([EMA], sizes=(16, 256), shares=(0.2, 1.0), values={
        "contribution": lambda row: {"lag": 3.0, "noise": 2.0, "start": -1.0}.get(row["term"], 0.0)})  # fmt: skip
    drawn = score_terms("mean")(tables)
    assert set(drawn.groupby(["panel", "depth"])["mean"].sum()) == {1.0}
    assert set(drawn["panel"]) >= {"batch size 16, after 20%", "batch size 256, at the end"}
    assert score_share("lag")(tables)["mean"].to_list() == pytest.approx([0.75] * 4)
    assert score_share("start", 1.0, 16)(tables)["mean"].to_list() == pytest.approx([-0.25])
