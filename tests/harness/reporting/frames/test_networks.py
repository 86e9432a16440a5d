"""Rows at the same share of training, of one network for each seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import rows

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


def test_estimators_of_one_population_in_some_networks_and_of_another_in_others_are_not_compared() -> None:
    """Gaps to the validation split over gaps to the training split gave 67 times for 4."""
    networks = {"run": ["a", "a", "b", "b"], "step": [200, 200, 11, 11], "estimator": ["exact", "precise"] * 2}
    own = pd.DataFrame({**networks, "statistics_split": ["val", "val", "train", "train"]})
    everywhere = pd.concat([own.assign(statistics_split=split) for split in ("train", "val")])
    for shares in ((), (1.0,)):
        with pytest.raises(
            UserError, match=r"rows of exact .*\(val in a at step 200; train in b at step 11\): sweep all with the same"
        ):
            rows(tables(own), "gaps", shares)
        assert len(rows(tables(everywhere), "gaps", shares)) == 8
    assert len(rows(tables(own), "gaps", statistics_split="val")) == 2
    late = pd.DataFrame({"run": "a", "step": [20, 200], "estimator": "exact", "statistics_split": ["train", "val"]})
    assert len(rows(tables(late), "gaps", (1.0,))) == 1
    with pytest.raises(UserError, match="train in a at step 20; val in a at step 200"):
        rows(tables(late), "gaps", (0.1, 1.0))


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


def test_a_share_without_rows_is_said() -> None:
    frame = pd.DataFrame({"run": ["a", "b"], "step": [200, 11]})
    with pytest.warns(UserWarning, match="gaps has no rows after 50% of training: .* accuracy_at=all"):
        assert len(rows(tables(frame), "gaps", (0.5, 1.0))) == 2


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


def test_seeds_that_were_trained_on_other_files_are_not_mixed() -> None:
    """As many images in the folder, of which some are others: only the networks' names differ."""
    runs = pd.DataFrame({"run": ["a/seed_0", "b/seed_1"], "seed": [0, 1], "batch_size": 8, "steps": 7})
    frame = pd.DataFrame({"run": runs["run"], "step": 7})
    assert len(rows(tables(frame, runs.assign(data="digits")), "gaps")) == 2
    with pytest.raises(UserError, match=r"different settings \(a/seed_0, files a; b/seed_1, files b\)"):
        rows(tables(frame, runs.assign(data="image_folder")), "gaps")
