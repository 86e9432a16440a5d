"""Frames against closed forms, plain pandas and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.frames import (
    OtherThan,
    average,
    best_on_average,
    find_parameter,
    interval,
    lowest,
    name_panels,
    other_seeds,
    over_best,
    paired,
    put_in_order,
    rows,
    score,
    select,
    share_name,
)
from tests.harness.reporting.planted import plant

TABLES = plant()
EARLY, LATE = share_name(0.5), share_name(1)


def test_rows_of_shares_of_the_training() -> None:
    frame = rows(TABLES, "gaps", (0.5, 1), estimator="ema", momentum=0.1, layer="2", batch_size=4)
    assert frame[["panel", "step", "seed"]].to_numpy().tolist() == [
        *([EARLY, 5, seed] for seed in range(3)),
        *([LATE, 10, seed] for seed in range(3)),
    ]
    assert rows(TABLES, "gaps", 0.3).empty, "the nearest step is not near"
    assert rows(TABLES, "gaps", 1.0)["panel"].eq("at the end of training").all()


def test_rows_of_all_steps_have_a_panel_for_each_setting() -> None:
    panels = rows(TABLES, "gaps")["panel"].unique().tolist()
    assert panels == ["batch size 4 (10 steps)", "batch size 32 (10 steps)"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({}, r"batch size 4 has several networks of one seed \(4/0, 4/1, 4/2\)\ntell them apart"),
        ({"seed": range(6)}, r"the table has seeds that were trained with different settings \(batch size 4, 32\)"),
    ],
)
def test_networks_are_not_mixed(setting: dict[str, Any], message: str) -> None:
    runs = TABLES["runs"].assign(**({"seed": 0} | setting))
    with pytest.raises(UserError, match=message):
        rows({**TABLES, "runs": runs}, "gaps", by=() if setting else ("batch_size",))


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(NoRows, match="the table drift has no rows"):
        rows(TABLES, "drift")
    with pytest.raises(UserError, match="no column 'estimater'; did you mean 'estimator'"):
        rows(TABLES, "gaps", estimater="ema")
    several = {**TABLES, "evaluations": pd.concat([TABLES["evaluations"], TABLES["evaluations"].assign(split="val")])}
    with pytest.raises(UserError, match=r"several rows of batch size 4, seed 0 \(split test, val\); select one"):
        score("evaluations", "accuracy", ("batch_size",), at=1.0, momentum=0.1)(several)


def test_selection() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, np.nan], "name": list("abc")})
    chosen = {"x": 1, "name": ("a", "b")}, {"x": None}, {"x": (None, 2)}, {"name": OtherThan(("a", "c"))}
    assert [select(frame, **wanted)["name"].tolist() for wanted in chosen] == [["a"], ["c"], ["b", "c"], ["b"]]
    assert put_in_order(frame, "name", "cb")["name"].tolist() == ["c", "b", "a"]


def test_the_lowest_of_each_group_is_the_first_and_not_missing() -> None:
    frame = pd.DataFrame({"by": [1, 1, 1, np.nan], "x": [np.nan, 2.0, 2.0, 5.0], "place": range(4)})
    assert lowest(frame, "x", ["by"])["place"].tolist() == [1, 3]


def test_parameters_of_estimators() -> None:
    frame = pd.DataFrame({"estimator": ["window(k=20,pooled=False)", "ema", "kalman(per=layer)", "x(k=3)"]})
    np.testing.assert_equal(find_parameter(frame, "k").to_numpy(), [20, np.nan, np.nan, 3])
    np.testing.assert_equal(find_parameter(frame, "k", of="window").to_numpy(), [20, np.nan, np.nan, np.nan])
    assert find_parameter(frame, "per").isna().all()


def test_panels_are_named_by_columns_and_sorted_by_them() -> None:
    frame = pd.DataFrame({"model.depth": [20, 3, 3], "of": ["b", "a", "b"], "size": [0.5, 2.0, 1.0]})
    named = name_panels(frame, "{of}, depth {model.depth}, size {size}")
    assert named["panel"].tolist() == ["b, depth 3, size 1.0", "b, depth 20, size 0.5", "a, depth 3, size 2.0"]


def test_averages() -> None:
    frame = pd.DataFrame({"by": [1, 1, 2, np.nan], "x": [1.0, 4.0, np.nan, 3.0]})
    assert average(frame, "x", ["by"]).to_numpy().tolist()[0] == [1.0, 2.5]
    geometric = average(frame, "x", ["by"], geometric=True)["x"]
    np.testing.assert_allclose(geometric, [2.0, np.nan, 3.0])


def test_the_best_momentum_on_average() -> None:
    frame = rows(TABLES, "evaluations", 1.0, estimator="ema")
    assert best_on_average(frame, "accuracy", ["batch_size"])["momentum"].unique().tolist() == [0.5]


values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8).filter(lambda x: np.std(x) > 1e-6)


@given(st.lists(values, min_size=1, max_size=4))
def test_intervals_are_those_of_scipy(samples: list[list[float]]) -> None:
    records = [(group, seed, x) for group, xs in enumerate(samples) for seed, x in enumerate(xs)]
    found = interval(pd.DataFrame(records, columns=["group", "seed", "x"]), "x", ["group"], scale=2)
    for row, xs in zip(found.to_dict("records"), samples, strict=True):
        doubled = 2 * np.array(xs)
        wanted = stats.ttest_1samp(doubled, 0).confidence_interval(0.95)
        assert (row["mean"], row["n"]) == (pytest.approx(doubled.mean()), len(xs))
        assert (row["low"], row["high"]) == (pytest.approx(wanted.low), pytest.approx(wanted.high))


def test_geometric_intervals_are_those_of_logarithms() -> None:
    frame = rows(TABLES, "gaps", 1.0, momentum=0.1, batch_size=4)
    (found,) = interval(frame, "mean_gap", (), average="layer", geometric=True).to_dict("records")
    logs = np.log([0.1 * 2**seed * 2 for seed in range(3)])  # of 1 and 4 the geometric mean is 2
    wanted = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert [found["mean"], found["low"], found["high"]] == pytest.approx(np.exp([logs.mean(), *wanted]).tolist())
    assert found["log"] and not found["share"] and found["error"] == pytest.approx(stats.sem(logs))


def test_intervals_of_shares_one_seed_and_missing_values() -> None:
    true = interval(pd.DataFrame({"seed": range(5), "x": [True] * 4 + [False]}), "x", ()).iloc[0]
    wanted = stats.binomtest(4, 5).proportion_ci(0.95)
    assert true["share"] and (true["low"], true["high"]) == (wanted.low, wanted.high)
    found = interval(pd.DataFrame({"seed": [0, 1], "x": [2.0, np.nan]}), "x", ()).iloc[0]
    assert (found["mean"], found["n"]) == (2, 1) and np.isnan(found["low"])


def test_one_seed_has_one_row() -> None:
    frame = rows(TABLES, "gaps", 1.0, layer="2")
    with pytest.raises(UserError, match=r"several rows of batch size 4, seed 0 \(momentum 0.1, 0.5\); select one"):
        interval(frame, "mean_gap", ["batch_size"])


def test_other_seeds_are_all_but_ones_own() -> None:
    frame = pd.DataFrame({"by": 0, "seed": [0, 1, 2], "x": [1.0, 2.0, 6.0]})
    assert other_seeds(frame, ["x"], ["by"])["x"].tolist() == [4.0, 3.5, 1.5]
    assert other_seeds(frame[:1], ["x"], ["by"]).empty


def test_pairs() -> None:
    frame = rows(TABLES, "evaluations", 1.0, batch_size=4)
    lost = paired(frame, "accuracy")
    assert lost["estimator"].eq("ema").all() and len(lost) == 6
    assert select(lost, momentum=0.1)["accuracy"].tolist() == pytest.approx([-0.02, -0.03, -0.04])
    times = paired(rows(TABLES, "gaps", 1.0), "mean_gap", 1, along="depth", ratio=True)
    assert times["mean_gap"].eq(4).all() and times["layer"].eq("10").all()
    sizes = paired(rows(TABLES, "gaps", 1.0), "mean_gap", 4, along="batch_size", matching=("seed",))
    assert sizes["mean_gap"].eq(0).all() and sizes["batch_size"].eq(32).all()
    early = paired(rows(TABLES, "gaps", (0.5, 1)), "mean_gap", EARLY, along="panel")
    assert early["panel"].eq(LATE).all() and early["mean_gap"].eq(0).all()


def test_pairs_with_several_populations_take_that_of_training() -> None:
    frame = rows(TABLES, "evaluations", 1.0)
    other = select(frame, estimator="exact").assign(statistics_split="val", accuracy=0.0)
    assert paired(pd.concat([frame, other]), "accuracy")["accuracy"].min() == pytest.approx(-0.9)


def test_pairs_need_the_same_seeds_and_one_reference() -> None:
    frame = rows(TABLES, "evaluations", 1.0, batch_size=4)
    with pytest.raises(UserError, match=r"seed 2 has rows of estimator exact only, or none; pairs need both"):
        paired(frame[~(frame["seed"].eq(2) & frame["estimator"].eq("exact"))], "accuracy")
    with pytest.raises(UserError, match=r"several rows of run 4/0.* \(momentum 0.1, 0.5\)"):
        paired(frame, "accuracy", "ema")


def test_times_the_best_momentum() -> None:
    found = over_best(rows(TABLES, "gaps", 1.0), "mean_gap")
    assert found.groupby("momentum")["mean_gap"].unique().map(list).to_dict() == {0.1: [1.0], 0.5: [5.0]}


def test_a_score_compares_and_averages() -> None:
    by = ("panel", "batch_size")
    found = score("evaluations", "accuracy", by, at=1.0, against="exact", scale=-100, estimator="ema", momentum=0.1)
    assert found(TABLES)["mean"].tolist() == pytest.approx([3.0, 3.0])
    own = score(lambda tables: rows(tables, "gaps", 1.0), "mean_gap", by, average=("layer", "momentum"), batch_size=4)
    assert own(TABLES)["mean"].tolist() == pytest.approx([np.mean([1, 2, 4]) * 0.3 * 2.5])
