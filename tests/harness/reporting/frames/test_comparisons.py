"""Differences and ratios to a reference; points on curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import on_curves, over_best, paired, select


def test_paired_by_network_step_and_layer() -> None:
    keys = [(run, step, layer) for run in "ab" for step in (1, 2) for layer in "xy"]
    rng = np.random.default_rng(0)
    base = pd.DataFrame(keys, columns=["run", "step", "layer"]).assign(momentum=np.nan)
    exact = base.assign(estimator="exact", gap=rng.random(8))
    others = [base.assign(estimator="ema", momentum=m, gap=exact["gap"] + 10 * m) for m in (0.1, 0.2)]
    frame = pd.concat([*others, exact], ignore_index=True).sample(frac=1, random_state=0)
    found = paired(frame, "gap")
    np.testing.assert_allclose(found["gap"], 10 * found["momentum"])
    assert len(found) == 16 and set(found["estimator"]) == {"ema"}
    without = frame[(frame["estimator"] == "ema") | (frame["layer"] == "x")]
    assert set(paired(without, "gap")["layer"]) == {"x"}  # where there is a reference
    assert paired(frame, "gap", against="swa").empty
    with pytest.raises(ValueError, match=r"'ema' has several rows for a network and step: momentum 0\.1, 0\.2; sel"):
        paired(frame, "gap", against="ema")
    assert len(paired(frame[frame["momentum"] != 0.2], "gap", against="ema")) == 8
    with pytest.raises(UserError, match="no column 'accuracy'"):
        paired(frame, "accuracy")
    times = paired(frame[frame["momentum"] != 0.2], "gap", ratio=True).set_index(["run", "step", "layer"])["gap"]
    np.testing.assert_allclose(times.sort_index(), (exact["gap"] + 1) / exact["gap"])


def test_paired_along_another_column() -> None:
    """Everything else that tells rows apart agrees, estimators and momenta too, null ones among them."""
    keys = [(run, panel, estimator, momentum, depth, split) for run in "ab" for panel in ("early", "late")
            for estimator, momentum in [("ema", 0.1), ("ema", 0.9), ("exact", np.nan)]
            for depth in (1, 2, 3) for split in ("val", "test")]  # fmt: skip
    columns = ["run", "panel", "estimator", "momentum", "depth", "split"]
    frame = pd.DataFrame(keys, columns=columns).sample(frac=1, random_state=0)
    frame = frame.assign(step=frame["panel"].map({"early": 3, "late": 9}), layer="l" + frame["depth"].astype(str))
    frame["gap"] = np.random.default_rng(0).random(len(frame)) + 1
    for along, against in [("split", "val"), ("depth", 2), ("panel", "late"), ("momentum", 0.1), ("layer", "l1")]:
        found = paired(frame if along != "layer" else frame.drop(columns="depth"), "gap", against, along=along)
        others = frame[(frame[along] != against) & ((along != "momentum") | (frame["momentum"] == 0.9))]
        assert len(found) == len(others)
        for index, row in found.iterrows():
            same = frame[frame[along] == against]
            for key in (key for key in columns if key != along and not (key == "depth" and along == "layer")):
                same = same[(same[key] == row[key]) | (same[key].isna() & pd.isna(row[key]))]
            assert len(same) == 1 and row["gap"] == frame["gap"][index] - same["gap"].iloc[0]
    with pytest.raises(ValueError, match="several rows"):
        paired(frame, "gap", "ema")


def test_the_reference_is_of_the_training_split() -> None:
    frame = pd.DataFrame({"run": "a", "step": 1, "estimator": ["exact", "exact", "ema"],
                          "statistics_split": ["val", "train", "train"], "gap": [5.0, 2.0, 9.0]})  # fmt: skip
    found = paired(frame, "gap")
    assert found[["estimator", "statistics_split", "gap"]].values.tolist() == [
        ["exact", "val", 3.0],
        ["ema", "train", 7.0],
    ]
    assert paired(frame.iloc[[0, 2]], "gap")["gap"].tolist() == [4.0]  # the only one that there is
    others = frame.replace({"statistics_split": {"train": "train_augmented"}})
    with pytest.raises(ValueError, match=r"'exact' has several rows .*statistics split train_augmented, val"):
        paired(others, "gap")


def test_the_best_in_hindsight_is_of_the_same_momenta() -> None:
    """Of a network that has fewer it would be farther, and others would look nearer to it."""
    records = [
        (f"run_{seed}", step, estimator, momentum, gap)
        for seed in range(3)
        for step in (10, 20)
        for estimator, momentum, gap in (("ema", 0.1, 2.0), ("ema", 0.5, 1.0), ("predictive", None, 3.0))
    ]
    frame = pd.DataFrame(records, columns=["run", "step", "estimator", "momentum", "gap"])
    assert set(select(over_best(frame, "gap"), estimator="predictive")["gap"]) == {3.0}
    lacking = frame[(frame["run"] != "run_2") | (frame["momentum"] != 0.5) | (frame["step"] != 10)]
    with pytest.raises(UserError, match="run run_2, step 10 has 1 of 2 values of momentum, and what is made of them"):
        over_best(lacking, "gap")


def test_the_best_in_hindsight_is_of_one_kind_of_rows() -> None:
    """The smallest of two kinds is no momentum's."""
    frame = pd.DataFrame({"run": "r", "step": 1, "estimator": "ema", "momentum": [0.1, 0.1], "gap": [1.0, 10.0]})
    with pytest.raises(ValueError, match="over_best: 'ema' has several rows for a momentum, network and step"):
        over_best(frame.assign(statistic=["mean", "var"]), "gap")


def test_a_curve_has_one_row_at_each_place() -> None:
    curves = pd.DataFrame({"panel": "p", "layer": ["a", "b"], "x": 1.0, "mean": [1.0, 2.0]})
    with pytest.raises(ValueError, match="on_curves: a curve has several rows at one x"):
        on_curves(curves, curves, "x", ["panel"])


def test_points_on_curves() -> None:
    curves = pd.DataFrame(
        {"size": [4, 4, 4, 8, 8], "momentum": [1.0, 0.01, np.nan, 0.1, 0.2], "mean": [3.0, 1.0, 9, 5, 7]}
    )
    points = pd.DataFrame({"size": [4, 8, 8, 16], "momentum": [0.1, 0.2, 0.3, 0.1], "seed": 0})
    found = on_curves(points, curves, "momentum", ["size"])
    assert found[["size", "momentum", "mean", "seed"]].values.tolist() == [
        [4, 0.1, pytest.approx(2), 0],
        [8, 0.2, 7, 0],
    ]
    assert on_curves(points, curves[:0], "momentum", ["size"]).empty
    null = [frame.assign(size=frame["size"].replace(8, np.nan)) for frame in (points, curves)]
    assert on_curves(*null, "momentum", ["size"])["mean"].tolist() == found["mean"].tolist()


def test_networks_of_one_seed_are_compared_along_the_setting_they_differ_in() -> None:
    frame = pd.DataFrame(
        {"run": list("abcd"), "seed": [0, 0, 1, 1], "batch_size": 16, "order": ["x", "y"] * 2, "value": [1.0, 3, 2, 8]}
    )
    found = paired(frame, "value", "x", along="order", matching=("seed", "batch_size"))
    assert found["value"].to_list() == [2.0, 6.0] and found["seed"].to_list() == [0, 1]
    averages = frame.drop(columns="run")  # of each network: nothing else tells the rows apart
    assert paired(averages, "value", "x", along="order", matching=("seed",))["value"].to_list() == [2.0, 6.0]
    with pytest.raises(UserError, match="no column 'colour'"):
        paired(frame, "value", "x", along="order", matching=("seed", "colour"))


def test_networks_without_a_common_row_are_told() -> None:
    """A ghost norm's batch norm has another name, and a network without statistics no estimator: claims had no rows."""
    columns = ["norm", "seed", "layer", "estimator", "gap"]
    frame = pd.DataFrame([["batch", 0, "1", "ema", 1.0], ["ghost", 0, "1.norm", "ema", 2.0]], columns=columns)
    with pytest.warns(UserWarning, match=r"compared with norm batch: rows have to agree in .*, and no layer does$"):
        assert paired(frame, "gap", "batch", along="norm", matching=("seed",)).empty
    with pytest.warns(UserWarning, match=r"have to agree in seed, layer, estimator$"):
        both = pd.concat([frame, frame[:1].assign(seed=1), frame[1:].assign(layer="1", seed=2)])
        assert paired(both, "gap", "batch", along="norm", matching=("seed",)).empty
