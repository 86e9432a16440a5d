"""Rows at the same share of training, one network for each seed; differences to a reference; intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import (
    OtherThan,
    average,
    interval,
    lowest,
    name_panels,
    on_curves,
    other_seeds,
    overlay,
    paired,
    rows,
    score,
    select,
)

RUNS = pd.DataFrame({"run": ["a", "b"], "seed": [0, 0], "batch_size": [8, 64], "steps": [200, 11]})


def tables(frame: pd.DataFrame, runs: pd.DataFrame = RUNS) -> dict[str, pd.DataFrame]:
    return {"runs": runs, "gaps": frame}


def test_the_nearest_step_if_it_is_near() -> None:
    frame = pd.DataFrame({"run": ["a"] * 4 + ["b"] * 3, "step": [10, 20, 60, 200, 1, 6, 11]})
    found = rows(tables(frame), "gaps", (0.1, 0.5, 1.0))
    # Run a has nothing near 50%; step 6 of 11 is within half a step of it.
    assert list(found[["run", "step", "panel"]].itertuples(index=False, name=None)) == [
        ("a", 20, "after 10% of training"),
        ("b", 1, "after 10% of training"),
        ("b", 6, "after 50% of training"),
        ("a", 200, "at the end of training"),
        ("b", 11, "at the end of training"),
    ]


def test_one_of_two_steps_that_are_equally_near() -> None:
    frame = pd.DataFrame({"run": ["a", "a", "a"], "step": [99, 101, 101], "layer": ["x", "x", "y"]})
    assert list(rows(tables(frame), "gaps", (0.5,))["step"]) == [101, 101]


def test_any_setting_is_a_panel_or_a_condition() -> None:
    runs = pd.DataFrame({"run": ["a", "b", "c", "d"], "seed": [0, 1] * 2, "model.depth": [2, 2, 9, 9],
                         "norm": ["batch"] * 4, "batch_size": 8, "steps": [7, 7, 1, 1], "loss": -1.0})  # fmt: skip
    frame = pd.DataFrame({"run": ["d", "c", "b", "a"], "step": 7, "loss": [4.0, 3.0, 2.0, 1.0]})
    found = rows(tables(frame, runs), "gaps", by=("model.depth", "norm"), seed=(0, 1))
    assert list(found["panel"]) == [
        f"model.depth {n}, norm batch ({s})" for n, s in ((2, "7 steps"),) * 2 + ((9, "1 step"),) * 2
    ]
    assert sorted(found["loss"]) == [1.0, 2.0, 3.0, 4.0]  # the table's own, not that of the runs
    assert list(rows(tables(frame, runs), "gaps", by=("norm",), **{"model.depth": 9})["run"]) == ["d", "c"]


def test_networks_with_other_settings_are_not_mixed() -> None:
    runs = pd.concat([RUNS, RUNS.assign(run=["c", "d"])], ignore_index=True)
    runs = runs.assign(lr=[0.1, 0.1, 0.2, 0.2], final_loss=[1.0, 2.0, 3.0, 4.0])
    rows(tables(pd.DataFrame({"run": ["a", "b"], "step": [1, 1]}), runs), "gaps")  # the others have no rows here
    both = tables(pd.DataFrame({"run": ["a", "c"], "step": [1, 1]}), runs)
    with pytest.raises(UserError) as caught:
        rows(both, "gaps")
    first, second = str(caught.value).splitlines()
    assert first == "batch size 8, seed 0 has several networks (a, lr 0.1; c, lr 0.2)"
    assert "name=" in second and "parts" in second
    assert len(rows(both, "gaps", by=("batch_size", "lr"))) == 2
    assert list(rows(both, "gaps", lr=0.2)["run"]) == ["c"]


def test_seeds_with_other_settings_are_not_mixed() -> None:
    """More seeds were swept later, at another length: no seed is there twice."""
    runs = pd.DataFrame({"run": ["a", "b", "c"], "seed": [0, 1, 2], "batch_size": 8, "epochs": [1.0, 1.0, 2.0],
                         "steps": [7, 7, 14], "data.shift": [np.nan, 0, 0], "threads": [1, 2, 2]})  # fmt: skip
    found = tables(pd.DataFrame({"run": ["a", "b", "c"], "step": 7}), runs)
    with pytest.raises(UserError) as caught:
        rows(found, "gaps")
    first, second = str(caught.value).splitlines()
    assert first.startswith("batch size 8 has seeds that were trained with different settings (a, epochs 1.0, steps 7")
    assert "c, epochs 2.0, steps 14" in first and "threads" not in first and "name=" in second
    assert len(rows(found, "gaps", by=("epochs",))) == 3
    assert len(rows(found, "gaps", epochs=1.0)) == 2  # of one the shift is not known


def test_select() -> None:
    frame = pd.DataFrame({"estimator": ["ema", "ema", "exact"], "momentum": [0.1, 0.2, np.nan]})
    assert list(select(frame, momentum=0.1).index) == [0]
    assert list(select(frame, momentum=None).index) == [2]
    assert list(select(frame, momentum=(0.2, None)).index) == [1, 2]
    assert list(select(frame, estimator="ema", momentum=(0.2, None)).index) == [1]
    assert select(frame, estimator="swa").empty
    assert list(select(frame, estimator=OtherThan("exact")).index) == [0, 1]
    assert list(select(frame, momentum=OtherThan(None)).index) == [0, 1]
    with pytest.raises(UserError, match="no column 'layer'; is it declared"):
        select(frame, layer="a")


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
    with pytest.raises(ValueError, match="'ema' has several rows for a network and step; select one"):
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


def test_a_share_without_rows_is_said() -> None:
    frame = pd.DataFrame({"run": ["a", "b"], "step": [200, 11]})
    with pytest.warns(UserWarning, match="gaps has no rows after 50% of training: .* accuracy_at=all"):
        assert len(rows(tables(frame), "gaps", (0.5, 1.0))) == 2


def test_a_score_selects_a_split() -> None:
    keys = [(split, estimator) for split in ("test", "val") for estimator in ("ema", "exact")]
    runs = RUNS.assign(batch_size=8, seed=[0, 1], steps=10)
    frame = pd.DataFrame([("ab"[i], 10, *key) for i in (0, 1) for key in keys],
                         columns=["run", "step", "split", "estimator"])  # fmt: skip
    frame["gap"] = [1.0, 0.0, 5.0, 2.0, 2.0, 0.0, 7.0, 2.0]
    made = score("gaps", "gap", ("panel",), (1.0,), against="exact")
    with pytest.raises(UserError, match=r"gaps has rows of several splits \(test, val\).*give it split='test'"):
        made(tables(frame, runs))
    with pytest.raises(UserError, match="several splits"):
        rows(tables(frame, runs), "gaps")
    for split, mean in (("test", 1.5), ("val", 4.0)):
        chosen = score("gaps", "gap", ("panel",), (1.0,), against="exact", split=split)
        assert chosen(tables(frame, runs))["mean"].tolist() == [mean]
    assert made(tables(frame[frame["split"] == "val"], runs))["mean"].tolist() == [4.0]
    both = score("gaps", "gap", ("panel", "split"), (1.0,), against="exact", split=("test", "val"))
    assert both(tables(frame, runs)).set_index("split")["mean"].to_dict() == {"test": 1.5, "val": 4.0}
    with pytest.raises(ValueError, match="several rows of one seed"):
        score("gaps", "gap", ("panel",), (1.0,), against="exact", split=("test", "val"))(tables(frame, runs))


def test_a_score_tells_networks_apart_by_any_setting() -> None:
    runs = pd.DataFrame({"run": list("abcd"), "seed": [0, 1] * 2, "model.width": [8, 8, 32, 32],
                         "batch_size": 16, "steps": 10})  # fmt: skip
    frame = pd.DataFrame({"run": list("abcd"), "step": 10, "gap": [1.0, 3.0, 5.0, 7.0]})
    found = score("gaps", "gap", ("panel", "model.width"), (1.0,))(tables(frame, runs))
    assert found[["model.width", "mean", "n"]].to_numpy().tolist() == [[8, 2, 2], [32, 6, 2]]


def test_a_score_is_rows_paired_and_interval() -> None:
    runs = RUNS.assign(seed=[0, 1], batch_size=8, steps=10)
    rng = np.random.default_rng(0)
    keys = [(run, step, estimator, momentum, layer) for run in "ab" for step in (1, 10) for layer in "xy"
            for estimator, momentum in [("ema", 0.1), ("ema", 0.2), ("swa", np.nan), ("exact", np.nan)]]  # fmt: skip
    frame = pd.DataFrame(keys, columns=["run", "step", "estimator", "momentum", "layer"]).assign(gap=rng.random(32))
    by, all_tables = ("panel", "estimator", "momentum"), tables(frame, runs)
    end = rows(all_tables, "gaps", (1.0,))
    options = {"average": "layer", "scale": 2, "geometric": True}
    pd.testing.assert_frame_equal(
        score("gaps", "gap", by, (1.0,), **options)(all_tables), interval(end, "gap", by, **options)
    )
    for estimator, momentum in [("ema", 0.1), (("ema", "swa"), (0.2, None)), (OtherThan("swa"), (0.1, None))]:
        found = score(
            "gaps", "gap", by, (1.0,), against="exact", average="layer", estimator=estimator, momentum=momentum
        )
        chosen = select(paired(end, "gap"), estimator=estimator, momentum=momentum)
        pd.testing.assert_frame_equal(found(all_tables), interval(chosen, "gap", by, average="layer"))
    assert score("gaps", "gap", by, (0.1,), average="layer", batch_size=9)(all_tables).empty
    ratio = score("gaps", "gap", by, (1.0,), against="exact", ratio=True, average="layer")(all_tables)
    pd.testing.assert_frame_equal(ratio, interval(paired(end, "gap", ratio=True), "gap", by, average="layer"))


def test_a_score_of_rows_that_a_function_finds() -> None:
    runs = RUNS.assign(seed=[0, 1], batch_size=8, steps=10)
    keys = [(run, 10, split, estimator) for run in "ab" for split in ("val", "test") for estimator in ("ema", "exact")]
    frame = pd.DataFrame(keys, columns=["run", "step", "split", "estimator"]).assign(gap=np.arange(8.0))
    all_tables = tables(frame, runs)

    def find(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        return rows(tables, "gaps", split=("val", "test"))

    found = score(find, "gap", ("estimator",), split="val")(all_tables)
    assert found.set_index("estimator")["mean"].to_dict() == {"ema": 2.0, "exact": 3.0}
    gained = score(find, "gap", ("estimator",), against="val", along="split", estimator="ema")(all_tables)
    assert gained[["estimator", "mean", "n"]].values.tolist() == [["ema", 2.0, 2]]
    assert score(find, "gap", (), against="exact", estimator="ema", split="val")(all_tables)["mean"].tolist() == [-1.0]
    with pytest.raises(ValueError, match="a function chooses its rows itself"):
        score(find, "gap", (), (1.0,))


def test_panels_are_named_and_in_the_order_of_their_numbers() -> None:
    frame = pd.DataFrame({"batch_size": [256, 4, 256, 4], "last": ["kept", "kept", "dropped", "dropped"]})
    found = name_panels(frame, "batch size {batch_size}, last {last}")
    assert found["panel"].tolist() == [f"batch size {n}, last {last}" for n in (4, 256) for last in ("kept", "dropped")]
    assert name_panels(frame, "last {last}")["panel"].tolist() == ["last " + last for last in frame["last"]]
    assert name_panels(frame[:0], "batch size {batch_size}").empty
    with pytest.raises(UserError, match="no column 'lats'; did you mean 'last'"):
        name_panels(frame, "last {lats}")


def test_lowest_against_plain_pandas() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"seed": np.repeat([0, 1, 2], 4), "momentum": [0.1, 0.2, 0.3, 0.4] * 3, "gap": rng.random(12)},
                         index=[0] * 12)  # fmt: skip
    frame.iloc[0, 2] = np.nan
    plain = [group.sort_values("gap").iloc[0]["momentum"] for _, group in frame.groupby("seed")]
    assert list(lowest(frame, "gap", ["seed"])["momentum"]) == plain
    assert list(lowest(frame.assign(gap=1.0), "gap", ["seed"])["momentum"]) == [0.1] * 3  # the first of several
    assert list(lowest(frame.assign(gap=np.nan), "gap", ["seed"])["momentum"]) == []
    null = pd.DataFrame({"momentum": [np.nan, np.nan, 0.1], "gap": [2.0, 1.0, 3.0]})
    assert list(lowest(null, "gap", ["momentum"])["gap"]) == [1.0, 3.0]
    with pytest.raises(UserError, match="no column 'depth'"):
        lowest(frame, "gap", ["depth"])


def test_average_against_plain_pandas() -> None:
    frame = frame_of_seeds().assign(layer="x")
    frame.loc[0, "x"] = np.nan
    plain = [group["x"].mean() for _, group in frame.groupby("momentum", dropna=False, sort=False)]
    found = average(frame, "x", ["momentum"])
    assert list(found) == ["momentum", "x"]
    np.testing.assert_allclose(found["x"], plain)
    roots = [stats.gmean(group["x"].dropna()) for _, group in frame.groupby("momentum", dropna=False, sort=False)]
    np.testing.assert_allclose(average(frame, "x", ["momentum"], geometric=True)["x"], roots)
    assert list(average(frame.assign(x=0.0), "x", ["layer"], geometric=True)["x"]) == [0]
    with pytest.raises(UserError, match="no column 'y'"):
        average(frame, "y", ["momentum"])


def test_what_other_seeds_say() -> None:
    frame = pd.DataFrame({"layer": ["x"] * 3 + ["y"] * 4, "seed": [0, 1, 2, 0, 1, 1, 2],
                          "noise": [1.0, 2.0, 4.0, 10.0, 20.0, 30.0, 90.0], "run": "a"})  # fmt: skip
    found = other_seeds(frame, ["noise"], ["layer"])
    assert found.values.tolist() == [
        ["x", 0, 3.0], ["x", 1, 2.5], ["x", 2, 1.5], ["y", 0, pytest.approx(140 / 3)], ["y", 1, 50.0], ["y", 2, 20.0],
    ]  # fmt: skip
    with pytest.raises(UserError, match="made from other seeds, and layer x has only seed 1; sweep several, such as"):
        other_seeds(frame[(frame["layer"] == "y") | (frame["seed"] == 1)], ["noise"], ["layer"])
    with pytest.raises(UserError, match="no column 'seed'"):
        other_seeds(frame.drop(columns="seed"), ["noise"], ["layer"])


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


def test_frames_upon_each_other() -> None:
    found = overlay(measured=pd.DataFrame({"x": [1, 2], "low": 0.0}), star=pd.DataFrame({"x": [3]}, index=[1]))
    assert found[["x", "kind"]].values.tolist() == [[1, "measured"], [2, "measured"], [3, "star"]]
    assert found.index.is_unique and found["low"].isna().tolist() == [False, False, True]


def frame_of_seeds() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    momenta = np.repeat([0.1, 0.5, np.nan], 4)
    return pd.DataFrame({"seed": list(range(4)) * 3, "momentum": momenta, "x": rng.random(12)})


def test_interval_against_plain_pandas() -> None:
    frame = frame_of_seeds()
    found = interval(frame, "x", ["momentum"], scale=100)
    grouped = 100 * frame.groupby("momentum", dropna=False, sort=False)["x"].mean()
    error = 100 * frame.groupby("momentum", dropna=False, sort=False)["x"].sem().to_numpy()
    half = stats.t.ppf(0.975, 3) * error
    np.testing.assert_array_equal(found["momentum"], [0.1, 0.5, np.nan])
    np.testing.assert_allclose(found["mean"], grouped)
    np.testing.assert_allclose(found["low"], grouped - half)
    np.testing.assert_allclose(found["high"], grouped + half)
    np.testing.assert_allclose(found["error"], error)
    assert list(found["n"]) == [4, 4, 4] and not found["log"].any()
    assert list(frame_of_seeds()["x"]) == list(frame["x"])  # as it was


def test_geometric_interval_against_scipy() -> None:
    frame = frame_of_seeds()
    found = interval(frame, "x", ["momentum"], geometric=True).set_index("momentum").loc[0.5]
    logs = np.log(frame[frame["momentum"] == 0.5]["x"])
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    assert found[["mean", "low", "high"]].to_list() == pytest.approx(np.exp([logs.mean(), low, high]).tolist())
    assert found["error"] == pytest.approx(stats.sem(logs)) and found["log"]
    zero = interval(frame.assign(x=0.0), "x", ["momentum"], geometric=True)
    assert list(zero["mean"]) == [0, 0, 0] and zero["low"].isna().all()


def test_few_values() -> None:
    frame = pd.DataFrame({"seed": [0, 0, 1, 2], "size": [1, 2, 2, 2], "x": [2.0, 1.0, np.nan, 3.0]})
    found = interval(frame, "x", ["size"])
    assert list(found["mean"]) == [2, 2] and list(found["n"]) == [1, 2]
    assert found.loc[0, ["low", "high", "error"]].isna().all() and found.loc[1, "error"] == 1.0
    empty = interval(frame[:0], "x", ["size"])
    assert empty.empty and {"size", "mean", "low", "high", "n", "error", "log"} == set(empty)


def test_a_seed_counts_once() -> None:
    """Rows of several layers are no more seeds: an average over layers comes first."""
    layers = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "momentum": np.nan, "layer": ["a", "b"] * 2, "x": [1.0, 2.0, 3.0, 4.0]}
    )
    with pytest.raises(ValueError, match=r"several rows of one seed \(momentum nan, seed 0\); select one, or average"):
        interval(layers, "x", ["momentum"])
    found = interval(layers, "x", ["momentum"], average="layer")
    assert found[["mean", "n"]].to_numpy().tolist() == [[2.5, 2]]
    assert list(interval(layers, "x", ["layer"])["n"]) == [2, 2]
    with pytest.raises(ValueError, match="several rows of one seed"):  # two steps of a layer
        interval(pd.concat([layers, layers]), "x", ["momentum"], average="layer")
    with pytest.raises(UserError, match="no column 'seed'"):
        interval(layers.drop(columns="seed"), "x", ["layer"])
    with pytest.raises(UserError, match="no column 'depth'"):
        interval(layers, "x", ["layer"], average="depth")


def test_an_estimator_is_wanted_by_its_whole_name() -> None:
    frame = pd.DataFrame({"estimator": ["kalman(per=layer)", "ema"], "x": [1, 2]})
    assert len(select(frame, estimator=("ema", "window"))) == 1
    assert len(select(frame, estimator="kalman(per=layer)")) == 1
    for wanted in ("kalman", ("ema", "kalman"), OtherThan("kalman")):
        with pytest.raises(UserError, match=r"no rows of estimator 'kalman'; there is 'kalman\(per=layer\)'"):
            select(frame, estimator=wanted)
    with pytest.raises(UserError, match="no rows of estimator 'kalman'"):
        paired(frame.assign(run="a", step=1), "x", against="kalman")


def test_a_misspelt_setting_is_named() -> None:
    frame = pd.DataFrame({"run": ["a", "b"], "step": 1, "x": [1.0, 2.0]})
    runs = RUNS.assign(**{"model.width": [8, 16]})
    assert len(score("gaps", "x", ("panel", "model.width"))(tables(frame, runs))) == 2
    with pytest.raises(UserError, match=r"no column 'model.widht'; did you mean 'model.width'\?"):
        score("gaps", "x", ("panel", "model.widht"))(tables(frame, runs))
