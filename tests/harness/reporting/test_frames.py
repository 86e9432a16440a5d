"""Frames against closed forms, plain pandas and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnlab.harness import average_gap
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.frames import (
    DEEPER,
    FIRST,
    RATIO_OVER_LAYERS,
    OtherThan,
    average,
    find_parameter,
    gap_over_layers,
    interval,
    lowest,
    name_panels,
    over_best,
    paired,
    put_in_order,
    rows,
    score,
    select,
    select_largest_gap,
    share_name,
)
from tests.harness.reporting.planted import plant

EARLY, LATE = share_name(0.5), share_name(1)
Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def planted() -> Tables:
    """Tables with values that can be computed in the head. Not to be changed."""
    return plant()


def test_rows_of_shares_of_the_training(planted: Tables) -> None:
    frame = rows(planted, "gaps", (0.5, 1), estimator="ema", momentum=0.1, layer="2", batch_size=4)
    assert frame[["panel", "step", "seed"]].to_numpy().tolist() == [
        *([EARLY, 5, seed] for seed in range(3)),
        *([LATE, 10, seed] for seed in range(3)),
    ]
    assert rows(planted, "gaps", 0.3).empty, "the nearest step is not near"
    assert rows(planted, "gaps", 1.0)["panel"].eq(LATE).all()

    long = {**planted, "runs": planted["runs"].assign(steps=640)}
    assert set(rows(long, "gaps", 7.5 / 640)["step"]) == {10}, "of 5 and 10, which are equally near, the later one"


@pytest.mark.parametrize(
    ("setting", "named"), [({}, r"\(4/0, 4/1, 4/2\)"), ({"seed": range(6)}, r"\(batch size 4, 32\)")]
)
def test_networks_are_not_mixed(setting: dict[str, Any], named: str, planted: Tables) -> None:
    runs = planted["runs"].assign(**({"seed": 0} | setting))
    with pytest.raises(UserError, match=named):
        rows({**planted, "runs": runs}, "gaps", by=() if setting else ("batch_size",))


DECAY = "optimizer.weight_decay"


def sweep_decay(runs: pd.DataFrame) -> pd.DataFrame:
    """The planted networks if each seed has two weight decays, 0.0125 and 0.1."""
    return runs.assign(batch_size=4, **{DECAY: runs["batch_size"] / 320})


def test_what_was_swept_is_told_apart_if_nothing_is_averaged_over_networks(planted: Tables) -> None:
    tables = {**planted, "runs": sweep_decay(planted["runs"])}
    with pytest.raises(UserError, match=r"\(weight decay 0\.0125, 0\.1\)"):
        rows(tables, "gaps", 1.0)

    frame = rows(tables, "gaps", 1.0, by=None, estimator="ema", momentum=0.1, layer="2")
    means = interval(frame, "mean_gap", (DECAY,))
    expected = rows(planted, "gaps", 1.0, momentum=0.1, layer="2").groupby("batch_size")["mean_gap"].mean()
    np.testing.assert_allclose(means["mean"], expected)
    assert means["n"].tolist() == [3, 3]
    with pytest.raises(UserError, match=r"batch size 4\b.*\b0\.0125, 0\.1\b"):
        interval(frame, "mean_gap", ("batch_size",))


def test_what_differs_between_seeds_alone_was_not_swept(planted: Tables) -> None:
    runs = sweep_decay(planted["runs"]).assign(seed=range(6))
    with pytest.raises(UserError, match=r"\(weight decay 0\.0125, 0\.1\)"):
        rows({**planted, "runs": runs}, "gaps", by=None)


def test_the_batch_size_is_what_was_swept_where_other_settings_follow_from_it(planted: Tables) -> None:
    runs = planted["runs"].assign(**{"optimizer.lr": planted["runs"]["batch_size"] / 100})
    tables = {**planted, "runs": runs}
    pd.testing.assert_frame_equal(rows(tables, "gaps", by=None), rows(tables, "gaps", by=("batch_size",)))


def test_what_is_not_there_is_said(planted: Tables) -> None:
    with pytest.raises(NoRows, match=r"\bdrift\b"):
        rows(planted, "drift")
    with pytest.raises(UserError, match=r"'estimater'.*\bestimator\b"):
        rows(planted, "gaps", estimater="ema")
    several = {
        **planted,
        "evaluations": pd.concat([planted["evaluations"], planted["evaluations"].assign(split="val")]),
    }
    with pytest.raises(UserError, match=r"\bsplit test, val\b"):
        score("evaluations", "accuracy", ("batch_size",), at=1.0, momentum=0.1)(several)


def test_networks_of_a_score_may_differ_in_what_is_compared(planted: Tables) -> None:
    runs = planted["runs"].assign(norm=planted["runs"]["batch_size"].map({4: "batch", 32: "group"}))
    compared: dict[str, Any] = {"against": "batch", "along": "norm", "matching": ("seed",), "norm": "group"}
    found = score("evaluations", "accuracy", ("panel",), at=1.0, estimator="exact", **compared)
    # The condition is the panel alone: the norms are told apart because they are compared.
    assert found({**planted, "runs": runs.assign(batch_size=8)})["n"].tolist() == [planted["runs"]["seed"].nunique()]


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


values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8).filter(lambda x: np.std(x) > 1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(values, min_size=1, max_size=4))
def test_intervals_are_those_of_scipy(samples: list[list[float]]) -> None:
    from scipy import stats

    records = []
    for group, sample in enumerate(samples):
        for seed, x in enumerate(sample):
            records.append({"group": group, "seed": seed, "x": x})

    found = interval(pd.DataFrame(records), "x", ["group"], scale=2)

    for row, sample in zip(found.to_dict("records"), samples, strict=True):
        doubled = 2 * np.array(sample)
        wanted = stats.ttest_1samp(doubled, 0).confidence_interval(0.95)
        assert row["n"] == len(sample)
        assert row["mean"] == pytest.approx(doubled.mean())
        assert row["low"] == pytest.approx(wanted.low)
        assert row["high"] == pytest.approx(wanted.high)


@pytest.mark.parametrize("values", [[0.3, 0.3], [1 - 0.7, 0.3], [0.0, 0.0]], ids=["equal", "up to rounding", "zero"])
def test_seeds_of_one_value_have_no_interval(values: list[float]) -> None:
    frame = pd.DataFrame({"seed": [0, 1], "x": values})

    (row,) = interval(frame, "x", []).to_dict("records")

    assert row["mean"] == pytest.approx(values[0])
    assert row["error"] == 0
    assert np.isnan(row["low"]) and np.isnan(row["high"])


def test_geometric_intervals_are_those_of_logarithms(planted: Tables) -> None:
    from scipy import stats

    frame = rows(planted, "gaps", 1.0, momentum=0.1, batch_size=4)
    over_layers = 2  # the geometric mean of 1 and 4
    logs = np.log([0.1 * 2**seed * over_layers for seed in range(3)])

    (found,) = interval(frame, "mean_gap", (), average="layer", geometric=True).to_dict("records")

    wanted = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    of_logs = [*np.log([found["mean"], found["low"], found["high"]]), found["error"]]
    assert of_logs == pytest.approx([logs.mean(), wanted.low, wanted.high, stats.sem(logs)])
    assert (found["log"], found["share"]) == (True, False)


def test_a_share_of_seeds_has_a_binomial_interval() -> None:
    from scipy import stats

    expected = stats.binomtest(4, 5).proportion_ci(0.95)

    (found,) = interval(pd.DataFrame({"seed": range(5), "x": [True] * 4 + [False]}), "x", ()).to_dict("records")

    assert [found["low"], found["high"]] == pytest.approx([expected.low, expected.high])
    assert (found["n"], found["share"]) == (5, True)


ENDS = [
    # a column, its values in two or more seeds, a scale; the ends of the interval, or None where they are not cut
    ("accuracy", [0.9, 1.0], 1, None, 1.0),
    ("accuracy", [0.0, 0.1], 100, 0.0, None),
    ("accuracy", [0.5, 0.6], -100, -100.0, 0.0),
    ("accuracy", [90.0, 92.0], 1, None, None),  # in percent, of a user's own
    ("x", [2.0, np.nan], 1, np.nan, np.nan),
]


@pytest.mark.parametrize(("column", "values", "scale", "low", "high"), ENDS)
def test_where_an_interval_ends(
    column: str, values: list[float], scale: float, low: float | None, high: float | None
) -> None:
    """Accuracies lie between none and all of the images, and one seed has no interval."""
    from scipy import stats

    frame = pd.DataFrame({"seed": range(len(values)), column: values})

    (found,) = interval(frame, column, (), scale=scale).to_dict("records")

    assert found["n"] == np.isfinite(np.array(values, float)).sum()
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    uncut = scale * np.nanmean(values) + abs(scale) * half * np.array([-1, 1])
    ends = [uncut[0] if low is None else low, uncut[1] if high is None else high]
    assert [found["low"], found["high"]] == pytest.approx(ends, nan_ok=True)
    assert not found["share"]


def test_a_difference_of_accuracies_may_be_below_none() -> None:
    accuracies = pd.DataFrame({"ema": [0.9, 0.95], "exact": [0.9, 0.9]})
    frame = accuracies.melt(var_name="estimator", value_name="accuracy").assign(seed=[0, 1] * 2, run=["a", "b"] * 2)

    gains = paired(frame, "accuracy")

    for compared in (gains, average(gains, "accuracy", ["seed"])):
        assert interval(compared, "accuracy", ())["low"].item() < 0


def test_one_seed_has_one_row(planted: Tables) -> None:
    frame = rows(planted, "gaps", 1.0, layer="2")
    with pytest.raises(UserError, match=r"\bmomentum 0\.1, 0\.5\b"):
        interval(frame, "mean_gap", ["batch_size"])


LOST = [-0.02, -0.01, -0.03, -0.01, -0.04, -0.01]
PAIRS: list[tuple[str, dict[str, Any], Any, dict[str, Any], dict[str, Any], list[float]]] = [
    # table, rows, reference, options; what is left, and its values
    ("evaluations", {"batch_size": 4}, "exact", {}, {"estimator": "ema"}, LOST),
    ("gaps", {}, 1, {"along": "depth", "ratio": True}, {"layer": "10"}, [4.0] * 12),
    ("gaps", {}, 4, {"along": "batch_size", "matching": ("seed",)}, {"batch_size": 32}, [0.0] * 12),
    ("gaps", {"at": (0.5, 1)}, EARLY, {"along": "panel"}, {"panel": LATE}, [0.0] * 24),
]


@pytest.mark.parametrize(("table", "wanted", "against", "options", "left", "values"), PAIRS)
def test_pairs(
    table: str,
    wanted: dict[str, Any],
    against: Any,
    options: dict[str, Any],
    left: dict[str, Any],
    values: list[float],
    planted: Tables,
) -> None:
    frame = rows(planted, table, **{"at": 1.0, **wanted})
    column = "accuracy" if table == "evaluations" else "mean_gap"

    found = paired(frame, column, against, **options)

    assert len(select(found, **left)) == len(found)
    assert found.sort_values(["seed", "momentum"])[column].tolist() == pytest.approx(values)


def test_pairs_with_several_populations_take_that_of_training(planted: Tables) -> None:
    frame = rows(planted, "evaluations", 1.0)
    other = select(frame, estimator="exact").assign(statistics_split="val", accuracy=0.0)
    assert paired(pd.concat([frame, other]), "accuracy")["accuracy"].min() == pytest.approx(-0.9)


def test_pairs_need_the_same_seeds_and_one_reference(planted: Tables) -> None:
    frame = rows(planted, "evaluations", 1.0, batch_size=4)
    with pytest.raises(UserError, match=r"\bseed 2\b.*\bexact\b"):
        paired(frame[~(frame["seed"].eq(2) & frame["estimator"].eq("exact"))], "accuracy")
    with pytest.raises(UserError, match=r"\brun 4/0\b.*\bmomentum 0\.1, 0\.5\b"):
        paired(frame, "accuracy", "ema")


def test_times_the_best_momentum(planted: Tables) -> None:
    found = over_best(rows(planted, "gaps", 1.0), "mean_gap")
    assert found.groupby("momentum")["mean_gap"].unique().map(list).to_dict() == {0.1: [1.0], 0.5: [5.0]}


SCORES: list[tuple[Any, dict[str, Any], Any]] = [
    # a table or rows, what is asked of them, and each mean
    ("evaluations", {"against": "exact", "scale": -100, "estimator": "ema", "momentum": 0.1}, 3.0),
    (lambda tables: rows(tables, "gaps", 1.0), {"average": ("layer", "momentum"), "batch_size": 4},
     np.mean([1, 2, 4]) * 0.3 * 2.5),
    # what is compared is selected by all columns in which it differs from the reference
    ("gaps", {"against": 1, "along": "depth", "ratio": True, "layer": "10", "average": "momentum"}, 4.0),
]  # fmt: skip


@pytest.mark.parametrize(("source", "asked", "mean"), SCORES)
def test_a_score_selects_compares_and_averages(
    source: Any, asked: dict[str, Any], mean: float, planted: Tables
) -> None:
    value = "accuracy" if source == "evaluations" else "mean_gap"
    shares: dict[str, Any] = {"at": 1.0} if isinstance(source, str) else {}

    found = score(source, value, ("panel", "batch_size"), **shares, **asked)(planted)

    assert len(found) == 2 - ("batch_size" in asked)
    assert found["mean"].tolist() == pytest.approx([mean] * len(found))


def layers(**gaps: list[float]) -> pd.DataFrame:
    """One row for each layer of each network, which is named by a keyword."""
    rows = [(run, depth, gap) for run, values in gaps.items() for depth, gap in enumerate(values, start=1)]
    return pd.DataFrame(rows, columns=["run", "depth", "gap"]).assign(layer=lambda f: f["depth"].astype(str), size=4)


def test_a_gap_over_layers_is_the_root_mean_square_of_the_deeper_ones() -> None:
    """Of 3 and 4 it is sqrt(12.5), whatever the first layer has."""
    found = gap_over_layers(layers(a=[7.0, 3.0, 4.0], b=[0.0, 1.0, 1.0]), "gap").set_index(["run", "layers"])["gap"]
    wanted = {("a", FIRST): 7, ("a", DEEPER): 12.5**0.5, ("b", FIRST): 0, ("b", DEEPER): 1}
    assert found.to_dict() == pytest.approx(wanted)


def test_the_average_gap_has_one_row_for_each_statistic_and_is_that_of_the_only_layer() -> None:
    """In the deeper layers; in the order of the rows, of which some columns are about one layer alone."""
    several = layers(a=[7.0, 3.0, 4.0]).assign(estimator="ema", momentum=[0.1] * 3)
    others = layers(a=[7.0, 1.0, 1.0]).assign(estimator="cumulative", momentum=np.nan)
    single = layers(b=[5.0]).assign(estimator="ema", momentum=0.1)
    gaps = pd.concat([several, others, single]).assign(step=4, statistics_split="train", epoch=0.5, channels=8)

    found = average_gap(gaps, "gap")

    assert list(found) == ["run", "step", "estimator", "momentum", "statistics_split", "epoch", "gap"]
    assert found["gap"].tolist() == pytest.approx([12.5**0.5, 1.0, 5.0])
    assert found[["run", "estimator"]].to_numpy().tolist() == [["a", "ema"], ["a", "cumulative"], ["b", "ema"]]


def test_a_gap_over_layers_keeps_estimators_apart_and_refuses_what_it_cannot_tell_apart() -> None:
    ema = layers(a=[1.0, 2.0]).assign(estimator="ema")
    exact = layers(a=[1.0, 6.0]).assign(estimator="exact")
    both = pd.concat([ema, exact])

    found = select(gap_over_layers(both, "gap"), layers=DEEPER)

    assert found["estimator"].to_list() == ["ema", "exact"]
    assert found["gap"].to_list() == [2, 6]
    with pytest.raises(UserError, match=r"\brun a, layer 1\b"):
        gap_over_layers(both.drop(columns="estimator"), "gap")


def test_the_layer_with_the_largest_gap_is_named_by_most_networks() -> None:
    frame = layers(a=[1.0, 3.0, 2.0], b=[1.0, 5.0, 4.0], c=[1.0, 1.5, 8.0])

    found = select_largest_gap(frame, "gap", ["size"])

    assert found["run"].to_list() == ["a", "b", "c"]
    assert found["gap"].to_list() == [3.0, 5.0, 8.0]
    assert set(found["largest"]) == {"2 (2 of 3)"}
    assert set(select_largest_gap(select(frame, run=("a", "b")), "gap", ["size"])["largest"]) == {"2"}


def test_ratios_are_averaged_geometrically_over_the_layers_behind_the_first() -> None:
    frame = layers(a=[100.0, 2.0, 8.0]).assign(seed=0)
    found = score(lambda tables: frame, "gap", ("size",), **RATIO_OVER_LAYERS)({})
    assert found["mean"].tolist() == pytest.approx([4.0])


def test_what_has_to_match_is_matched_always() -> None:
    """Where estimators are compared their momenta may differ, unless they are asked to agree."""
    runs = pd.DataFrame({"run": "a", "seed": 0, "step": 1, "momentum": [0.1, 0.5]})
    ema = runs.assign(estimator="ema", x=[5.0, 9.0])
    debiased = runs.assign(estimator="ema_debiased", x=[1.0, 2.0])
    frame = pd.concat([ema, debiased])

    found = paired(frame, "x", "ema_debiased", matching=("run", "momentum"))

    assert found[["momentum", "x"]].to_numpy().tolist() == [[0.1, 4.0], [0.5, 7.0]]
    with pytest.raises(UserError, match=r"\brun a, step 1\b"):
        paired(frame, "x", "ema_debiased")


def test_what_is_compared_cannot_match(planted: Tables) -> None:
    with pytest.raises(UserError, match=r"\bmomentum are\b"):
        paired(rows(planted, "gaps", 1.0), "mean_gap", 0.1, along="momentum", matching=("run", "momentum"))
