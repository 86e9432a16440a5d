"""Effects for the claims of `test_batch`, and its scores on numbers that can be read off."""

from __future__ import annotations

from typing import Any

import pytest

from bnlab.harness.errors import Note
from experiments.questions.test_batch import score_splits
from tests.experiments.planted import Effect, Setting, alternate, plant, score_claim

EXACT: list[Setting] = [("exact", None), ("exact", None, "val")]
RULES: list[Setting] = [
    *EXACT,
    *[(f"test_batch(n={n})", None, "test") for n in (2, 8, 512)],
    *[(f"pseudo_samples(n=16.0,between=False,batch={n})", None, "test") for n in (2, 8)],
    ("example_weighing(weight=0.1,batch=64)", None, "test"),
]


def effect(start: str, holds: float, fails: float, split: str = "test", statistics: str = "test") -> Effect:
    """Points that estimators whose names begin so gain on images of a split."""

    def gain(points: float, noise: float) -> Any:
        def accuracy(row: dict[str, Any]) -> float:
            at = row["estimator"].startswith(start), row["split"], row["statistics_split"]
            some = points + row["seed"] / 50 + noise * alternate(row)
            return 0.5 + some / 100 * (at == (True, split, statistics))

        return accuracy

    common = {"estimators": RULES, "splits": ("test", "val"), "shares": (1.0,)}
    return Effect({**common, "accuracy": gain(holds, 0)}, {"accuracy": gain(fails, 0)}, accuracy=gain(0, 30))


EFFECTS = {
    "tiny_test_batches_cost": effect("test_batch(n=2)", -5, 5),
    "large_test_batches_cost_nothing": effect("test_batch(n=512)", 0.1, 3),
    "pseudo_samples_gain": effect("pseudo_samples", 3, -3),
    "example_weighing_gains": effect("example_weighing", 3, -3),
    "validation_serves": effect("exact", 0.1, 3, statistics="val"),
    "validation_leaks_nothing": effect("exact", 0.1, 3, split="val", statistics="val"),
}


def accuracy(row: dict[str, Any]) -> float:
    """Statistics of the validation split gain 5 points on its own images and lose 1 on others."""
    points = {"val": 5, "test": -1}[row["split"]] * (row["statistics_split"] == "val")
    points += {"test_batch(n=2)": -20, "test_batch(n=8)": -2}.get(row["estimator"], 0)
    points += -1 if row["estimator"].startswith("pseudo") else 0
    return 0.5 + points / 100


def test_scores() -> None:
    tables = plant(RULES, accuracy=accuracy, splits=("test", "val"), shares=(1.0,), sizes=(16,))
    assert score_claim("test_batch", "validation_leaks_nothing", tables)["mean"].tolist() == [pytest.approx(6)]
    assert score_splits(tables).set_index("predicted")["mean"].to_dict() == pytest.approx(
        {"validation images": 5, "test images": -1}
    )
    assert score_claim("test_batch", "pseudo_samples_gain", tables).set_index("images")[
        "mean"
    ].to_dict() == pytest.approx({2: 19, 8: 1})


def test_other_rules_are_not_mixed() -> None:
    others: list[Setting] = [(f"eval_norm(batch={n})", None, "test") for n in (2, 8)]
    tables = plant([("exact", None), *others], accuracy=accuracy, splits=("test", "val"), shares=(1.0,), sizes=(16,))
    assert score_claim("test_batch", "pseudo_samples_gain", tables).empty


def test_claims_are_of_sixteen_pseudo_samples_at_the_end_of_training() -> None:
    few = [(f"pseudo_samples(n=4.0,between=False,batch={n})", None, "test") for n in (2, 8)]
    tables = plant([*RULES[:5], *few], accuracy=accuracy, splits=("test", "val"), shares=(1.0,), sizes=(16,))
    assert score_claim("test_batch", "pseudo_samples_gain", tables).empty
    with pytest.warns(Note, match="evaluations has no rows at the end of training"):
        early = plant(RULES, accuracy=accuracy, splits=("test", "val"), shares=(0.5,), sizes=(16,))
        assert score_splits(early).empty
