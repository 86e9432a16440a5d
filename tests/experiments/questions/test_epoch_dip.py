"""Effects for the claims of `epoch_dip`, and its scores on numbers that theory gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnlab import theory
from tests.experiments.planted import USUAL, Effect, Value, alternate, plant, score_claim

SPREAD = 0.3
ONE: dict[str, Any] = {"estimators": [("ema_debiased", 0.1)], "sizes": (256,), "shares": (1.0,)}


def predict(row: dict[str, Any]) -> float:
    share = USUAL["last_share"](row)
    return float(theory.epoch_noise(0.1, row["position"], USUAL["batches"](row), SPREAD, share))


def times(end: float, kept: float = 1, all_: float = 1) -> dict[str, Value]:
    """Errors that are so many times those predicted: at the end, with the last batch, everywhere."""

    def error(row: dict[str, Any]) -> float:
        factor = end if row["position"] == USUAL["batches"](row) else 1.0
        return predict(row) * factor * (kept if row["last_batch"] == "kept" else 1) * all_ * (1 + row["seed"] / 100)

    return {"noise": lambda row: error(row) * (1 + row["seed"] * row["position"] / 1e4),
            "spread": lambda row: SPREAD}  # fmt: skip


def noise(row: dict[str, Any]) -> float:
    other = alternate(row)
    return times(1.2 * 3.0**other, 0.6 * 3.0**other, 2.0**other)["noise"](row)


def effect(fails: dict[str, Value]) -> Effect:
    unclear: dict[str, Value] = {"noise": noise, "spread": lambda row: SPREAD}
    return Effect(ONE | {"values": times(1)}, {"values": fails}, values=unclear)


EFFECTS = {
    "end_is_better_than_independent": effect(times(3)),
    "dips": effect(times(3)),
    "small_batch_undoes_it": effect(times(1, kept=0.2)),
    "theory_predicts_the_course": effect(times(1, all_=2)),
    "theory_predicts_the_end": effect(times(2)),
}


def test_scores_of_what_theory_predicts() -> None:
    """The numbers of the claims' margins."""
    values: dict[str, Value] = {"noise": predict, "spread": lambda row: SPREAD}
    tables = plant(**ONE, values=values)
    expected = {
        "end_is_better_than_independent": (0.48, 0.01),
        "dips": (0.66, 0.01),
        "small_batch_undoes_it": (3.1, 0.1),
        "theory_predicts_the_course": (1, 1e-9),
        "theory_predicts_the_end": (1, 1e-9),
    }
    for claim, (mean, margin) in expected.items():
        np.testing.assert_allclose(score_claim("epoch_dip", claim, tables)["mean"], mean, atol=margin)


def test_equal_batches_leave_none_that_could_be_kept() -> None:
    values: dict[str, Value] = {"noise": predict, "spread": lambda row: SPREAD, "last_share": lambda row: 1.0}
    assert score_claim("epoch_dip", "small_batch_undoes_it", plant(**ONE, values=values)).empty
