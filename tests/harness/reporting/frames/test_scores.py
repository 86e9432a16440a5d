"""Scores are rows, comparisons and intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import OtherThan, interval, paired, rows, score, select
from tests.harness.reporting.frames.test_networks import RUNS, tables


@pytest.mark.parametrize(("column", "setting", "one", "other"), [("split", "evaluate_on", "test", "val"),
                                                                 ("shift", "shifts", "none", "noise:1")])  # fmt: skip
def test_a_score_selects_a_split_and_a_shift(column: str, setting: str, one: str, other: str) -> None:
    keys = [(split, estimator) for split in (one, other) for estimator in ("ema", "exact")]
    runs = RUNS.assign(batch_size=8, seed=[0, 1], steps=10)
    frame = pd.DataFrame([("ab"[i], 10, *key) for i in (0, 1) for key in keys],
                         columns=["run", "step", column, "estimator"])  # fmt: skip
    frame["gap"] = [1.0, 0.0, 5.0, 2.0, 2.0, 0.0, 7.0, 2.0]
    made = score("gaps", "gap", ("panel",), (1.0,), against="exact")
    with pytest.raises(UserError, match=rf"several {column}s \({one}, {other}\).* {column}='{one}'.*{setting}="):
        made(tables(frame, runs))
    with pytest.raises(UserError, match=f"gaps has rows of several {column}s"):
        rows(tables(frame, runs), "gaps")
    for chosen_one, mean in ((one, 1.5), (other, 4.0)):
        chosen = score("gaps", "gap", ("panel",), (1.0,), against="exact", **{column: chosen_one})
        assert chosen(tables(frame, runs))["mean"].tolist() == [mean]
    assert made(tables(frame[frame[column] == other], runs))["mean"].tolist() == [4.0]
    both = score("gaps", "gap", ("panel", column), (1.0,), against="exact", **{column: (one, other)})
    assert both(tables(frame, runs)).set_index(column)["mean"].to_dict() == {one: 1.5, other: 4.0}
    with pytest.raises(UserError, match=rf"would mix rows of several values of {column} \({one}, {other}; panel"):
        score("gaps", "gap", ("panel",), (1.0,), against="exact", **{column: (one, other)})(tables(frame, runs))


@pytest.mark.parametrize(
    ("column", "values"), [("momentum", (0.01, 0.1)), ("estimator", ("kalman", "ema")), ("step", (5, 10))]
)
def test_a_score_does_not_mix_what_seeds_have_alone(column: str, values: tuple[object, object]) -> None:
    """Rows of two sweeps, of other seeds."""
    runs = RUNS.assign(batch_size=8, seed=[0, 1], steps=10)
    frame = pd.DataFrame({"run": ["a", "b"], "step": 10, "estimator": "ema", "momentum": 0.1, "gap": [1.0, 3.0]})
    all_tables = tables(frame.assign(**{column: values}), runs)
    with pytest.raises(UserError, match=rf"several values of {column} \({values[0]}, {values[1]}; batch size 8"):
        score("gaps", "gap", ("batch_size",))(all_tables)
    assert score("gaps", "gap", ("batch_size", column))(all_tables)["n"].tolist() == [1, 1]
    assert score(lambda found: rows(found, "gaps"), "gap", ("batch_size",))(all_tables)["n"].tolist() == [2]


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


def test_a_misspelt_setting_is_named() -> None:
    frame = pd.DataFrame({"run": ["a", "b"], "step": 1, "x": [1.0, 2.0]})
    runs = RUNS.assign(**{"model.width": [8, 16]})
    assert len(score("gaps", "x", ("panel", "model.width"))(tables(frame, runs))) == 2
    with pytest.raises(UserError, match=r"no column 'model.widht'; did you mean 'model.width', or"):
        score("gaps", "x", ("panel", "model.widht"))(tables(frame, runs))
