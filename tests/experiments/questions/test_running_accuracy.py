"""Effects for the claims of `running_accuracy`, and its averages against plain pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments.questions.running_accuracy import average_batches, find_curves
from tests.experiments.planted import EMA, Effect, Value, alternate, plant


def effect(share: float, split: str, holds: float, fails: float) -> Effect:
    """Points by which mini-batches are above the images of a split."""

    def logged(points: float, noise: float = 0) -> dict[str, Value]:
        return {"accuracy": lambda row: 0.5 + (points + row["seed"] / 50 + noise * alternate(row)) / 100}

    common = {"estimators": [EMA, ("exact", None)], "splits": ("train", "val"), "shares": (share,), "accuracy":
              lambda row: 0.5 if row["split"] == split else 0.9}  # fmt: skip
    return Effect({**common, "values": logged(holds)}, {"values": logged(fails)},
                  accuracy=common["accuracy"], values=logged(0, 30))  # fmt: skip


EFFECTS = {
    "lags_early": effect(0.1, "train", -5, 5),
    "below_validation_early": effect(0.1, "val", -5, 5),
    "agrees_late": effect(1.0, "train", 0.1, 5),
    "flatters_late": effect(1.0, "val", 5, -5),
}


def test_averages_are_of_2000_images() -> None:
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"run": ["a", "b"] * 300, "batch_size": [16, 1024] * 300, "step": np.repeat(range(1, 301), 2)})
    log = log.assign(accuracy=rng.random(600)).sample(frac=1, random_state=0)
    found = log.assign(average=average_batches(log)).sort_values("step")
    for run, window in (("a", 125), ("b", 2)):
        own = found[found["run"] == run]
        plain = [own["accuracy"].iloc[max(0, k - window) : k].mean() for k in range(1, 301)]
        np.testing.assert_allclose(own["average"], plain)


def test_the_average_stands_beside_what_is_measured_at_its_step() -> None:
    tables = plant([EMA, ("exact", None)], accuracy=lambda row: 0.2, splits=("train", "val"), sizes=(2000,), seeds=(0,),
                   shares=(0.1, 1.0), values={"accuracy": lambda row: row["step"] / 2000})  # fmt: skip
    curves = find_curves(tables)
    assert curves.groupby("of").size().to_dict() == {
        "mini-batches": 2, "training images, EMA": 2, "training images, exact": 2,
        "validation images, EMA": 2, "validation images, exact": 2,
    }  # fmt: skip
    batches = curves[curves["of"] == "mini-batches"]
    assert dict(zip(batches["step"], batches["accuracy"], strict=True)) == pytest.approx({100: 0.05, 1000: 0.5})
    assert set(curves[curves["of"] != "mini-batches"]["accuracy"]) == {0.2}
