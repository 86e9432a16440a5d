"""Effects for the claims of `shift`, and its scores on numbers that can be read off."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.questions.shift import FONTS, KINDS, SHIFTS, STRONG, find_gains, score_accuracy
from tests.experiments.planted import Effect, Setting, Value, plant, score_claim

RULES: list[Setting] = [
    ("exact", None),
    ("test_batch(n=4)", None, "test"),
    ("test_batch(n=256)", None, "test"),
    ("pseudo_samples(n=16.0,between=False,batch=4)", None, "test"),
]
SWEPT = tuple(shift for shift in SHIFTS if not shift.endswith(":2"))
NETWORKS: dict[str, Any] = {"sizes": (64,), "shares": (1.0,), "shifts": SWEPT}


def change(points: float, noise: float, estimator: str, shifts: tuple[str, ...]) -> Value:
    """Accuracy that is so many points higher for an estimator under some shifts, by seed a little more or less."""

    def accuracy(row: dict[str, Any]) -> float:
        some = points + row["seed"] / 50 + noise * (1 - 2 * (row["seed"] % 2))
        return 0.5 + some / 100 * (row["estimator"] == estimator and row["shift"] in shifts)

    return accuracy


def effect(holds: float, fails: float, estimator: str, shifts: tuple[str, ...]) -> Effect:
    planted = [{"accuracy": change(points, 0, estimator, shifts)} for points in (holds, fails)]
    common: dict[str, Any] = {"estimators": RULES, **NETWORKS}
    return Effect({**common, **planted[0]}, planted[1], accuracy=change(0, 30, estimator, shifts))


EFFECTS = {
    "shifts_cost": effect(-5, 5, "exact", (FONTS, *STRONG)),
    "many_images_gain": effect(5, -5, "test_batch(n=256)", STRONG),
    "stronger_gains_more": effect(5, -5, "test_batch(n=256)", STRONG),
    "fonts_gain_little": effect(0.5, 3, "test_batch(n=256)", (FONTS,)),
    "unshifted_loses_nothing": effect(0.1, 3, "test_batch(n=256)", ("none",)),
    "few_and_pseudo_gain": effect(5, -5, "pseudo_samples(n=16.0,between=False,batch=4)", STRONG),
}


def accuracy(row: dict[str, Any]) -> float:
    """Each shift costs exact statistics a point for its place and strength; of this, rules gain back a part."""
    kind, _, strength = row["shift"].partition(":")
    cost = (KINDS.index(kind) + 1) * int(strength) if kind in KINDS else 0
    gained = {"exact": 0, "test_batch(n=4)": -1, "test_batch(n=256)": 0.5}.get(row["estimator"], 0.25)
    return 0.5 - cost * (1 - gained) / 100


def test_scores() -> None:
    tables = plant(RULES, accuracy=accuracy, **NETWORKS)
    assert list(dict.fromkeys(find_gains(tables)["shift"])) == list(SWEPT)
    assert list(dict.fromkeys(find_gains(tables)["panel"])) == [
        f"{images} test images, {prior} pseudo-samples" for images, prior in ((4, 0), (4, 16), (256, 0))
    ]
    assert score_claim("shift", "shifts_cost", tables).set_index("shift")["mean"].to_dict() == pytest.approx(
        {FONTS: 0, "contrast:3": 3, "noise:3": 6, "blur:3": 9, "translation:3": 12, "occlusion:3": 15}
    )
    assert score_claim("shift", "stronger_gains_more", tables).set_index("panel")["mean"].to_dict() == pytest.approx(
        {kind: place + 1 for place, kind in enumerate(KINDS)}  # half of three times as much, less half of it
    )


def test_accuracy_is_drawn_beside_that_under_exact_statistics() -> None:
    """Which has no test batch: at all sizes of one."""
    found = score_accuracy(plant(RULES, accuracy=accuracy, **NETWORKS))
    assert list(dict.fromkeys(found["panel"])) == list(SWEPT)
    noise = found[found["panel"] == "noise:3"].set_index(["estimator", "images"])["mean"].to_dict()
    assert noise == pytest.approx({("test_batch", 4): 38, ("test_batch", 256): 47, ("pseudo_samples(n=16)", 4): 45.5,
                                   ("exact", 4): 44, ("exact", 256): 44})  # fmt: skip


def test_a_corruption_of_middle_strength_is_drawn_and_no_strong_one() -> None:
    tables = plant(RULES, accuracy=accuracy, **{**NETWORKS, "shifts": ("noise:2", "noise:3", "none", "noise:1")})
    assert list(dict.fromkeys(find_gains(tables)["shift"])) == ["none", "noise:1", "noise:2", "noise:3"]
    (found,) = score_claim("shift", "stronger_gains_more", tables).to_dict("records")
    assert found["mean"] == pytest.approx(2), "half of three times as much, less half of it"


def test_other_rules_are_no_test_batches() -> None:
    others: list[Setting] = [(f"{rule}(batch={n})", None, "test") for rule in ("eval_norm", "own") for n in (4, 64)]
    found, alone = (plant([*RULES, *more], accuracy=accuracy, **NETWORKS) for more in (others, []))
    assert score_accuracy(found).equals(score_accuracy(alone))
    assert find_gains(found)["estimator"].unique().tolist() == find_gains(alone)["estimator"].unique().tolist()
