"""Verdicts against scipy's tests of plain arrays; scores get what their experiment declares, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bnlab.harness.errors import UserError
from bnlab.harness.reporting import frames
from bnlab.harness.reporting.experiment import Claim, Experiment, decide
from bnlab.harness.reporting.frames import interval
from bnlab.harness.reporting.frames.scores import Score
from bnlab.harness.reporting.verdicts import (
    CANNOT_BE_SCORED,
    NO_SPREAD,
    Margin,
    above,
    below,
    holm,
    judge,
    p_values,
    within,
)
from tests.harness.reporting.planted import plant

SAMPLES = {
    "wide": [0.2, 3.1, -2.4, 1.0],
    "high": [1.9, 2.1, 2.05, 2.2],
    "low": [-3.0, -3.2, -2.9],
    "near": [1.2, 1.3, 1.6],
    "one": [5.0],
}


def verdicts(frame: pd.DataFrame, margin: Margin) -> list[str]:
    return list(judge(frame, margin)["verdict"])


def score(samples: dict[str, list[float]], **options: Any) -> pd.DataFrame:
    records = [(name, seed, x) for name, values in samples.items() for seed, x in enumerate(values)]
    return interval(pd.DataFrame(records, columns=["name", "seed", "x"]), "x", ["name"], **options)


def one_sided(values: list[float], bound: float, side: str) -> float:
    return float(stats.ttest_1samp(np.array(values, float), bound, alternative=side).pvalue)


def expected(values: list[float], margin: Margin) -> tuple[float, float]:
    """p-values of the margin and of its opposite, by scipy."""
    if len(values) < 2:
        return np.nan, np.nan
    bounds = {"greater": margin.low, "less": margin.high}
    finite = {side: bound for side, bound in bounds.items() if np.isfinite(bound)}
    other = {"greater": "less", "less": "greater"}
    holds = max(one_sided(values, bound, side) for side, bound in finite.items())
    fails = [one_sided(values, bound, other[side]) for side, bound in finite.items()]
    return holds, min(1, len(fails) * min(fails))


@pytest.mark.parametrize(
    "margin", [above(1.0), above(0.0), below(-1.0), below(2.5), within(-1.0, 1.5), within(1.8, 2.3)]
)
def test_p_values_are_those_of_scipy(margin: Margin) -> None:
    found = p_values(score(SAMPLES), margin)
    wanted = np.array([expected(values, margin) for values in SAMPLES.values()]).T
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("margin", [above(1.0), below(2.0), within(0.5, 2.0)])
def test_geometric_p_values_are_those_of_logarithms(margin: Margin) -> None:
    logs = {name: np.array(values) for name, values in SAMPLES.items()}
    positive = {name: np.exp(values).tolist() for name, values in logs.items()}
    with np.errstate(divide="ignore"):
        low = float(np.log(max(margin.low, 0)))
        high = float(np.log(max(margin.high, 0)))

    found = p_values(score(positive, geometric=True), margin)

    wanted = [expected(values.tolist(), Margin(low, high)) for values in logs.values()]
    np.testing.assert_allclose(found, np.transpose(wanted), rtol=1e-9)


def test_what_is_geometric_is_above_any_negative_bound() -> None:
    frame = score({"positive": [1.0, 2.0]}, geometric=True)

    assert verdicts(frame, above(-1.0)) == ["holds"]


def test_a_closed_form() -> None:
    """Two seeds: t has one degree of freedom, and p = 1/2 − arctan(t)/π."""
    holds, fails = p_values(score({"two": [1.0, 3.0]}), above(0.0))  # mean 2, error 1

    assert holds[0] == pytest.approx(0.5 - np.arctan(2) / np.pi)
    assert holds[0] + fails[0] == pytest.approx(1)


@given(st.lists(st.floats(0, 1) | st.just(np.nan), max_size=8))
def test_holm_is_that_of_its_definition(p: list[float]) -> None:
    """Reject in order of size as long as the k-th smallest of m is at most level / (m − k + 1)."""
    adjusted = holm(np.array(p))
    tested = sorted(x for x in p if not np.isnan(x))
    for level in (0.01, 0.05, 0.3):
        passed = [x <= level / (len(tested) - k) for k, x in enumerate(tested)]
        count = passed.index(False) if False in passed else len(passed)
        assert (adjusted <= level + 1e-12).sum() >= count >= (adjusted <= level - 1e-12).sum()

    assert np.isnan(adjusted).tolist() == np.isnan(p).tolist()


def test_each_verdict() -> None:
    margin = above(0.0)
    frame = score(SAMPLES)

    assert dict(zip(SAMPLES, verdicts(frame, margin), strict=True)) == {
        "wide": "undecided",
        "high": "holds",
        "low": "fails",
        "near": "holds",
        "one": "one seed",
    }
    assert verdicts(frame, below(0.0)) == ["undecided", "fails", "holds", "fails", "one seed"]
    assert verdicts(frame, within(-1.0, 1.0)) == ["undecided", "fails", "fails", "undecided", "one seed"]
    assert verdicts(frame, within(1.0, 3.0)) == ["undecided", "holds", "fails", "undecided", "one seed"]
    assert verdicts(score({"none": [np.nan, np.nan]}), margin) == ["not measured"]


def test_holm_decides_over_the_conditions_of_a_claim() -> None:
    """What holds by itself is undecided beside others, and is marked."""
    values = [0.7, 1.0, 1.5]

    assert 0.0125 < one_sided(values, 0.0, "greater") < 0.025
    alone = score({"b": values})
    assert verdicts(alone, above(0.0)) == ["holds"]

    both = score({"a": [-1.0, 1.0], "b": values})
    beside = judge(both, above(0.0))

    first, second = beside.to_numpy().tolist()
    assert first == ["undecided", ""]
    assert second == ["undecided", "holds by itself"]


def test_a_condition_of_one_seed_corrects_no_other() -> None:
    frame = score({"a": [1.0], "b": [0.7, 1.0, 1.5]})

    assert verdicts(frame, above(0.0)) == ["one seed", "holds"]


def test_a_claim_that_wants_all_conditions_is_corrected_where_it_fails_only() -> None:
    """Each line has to hold for itself; that one of many fails by chance is corrected for."""
    values = [0.7, 1.0, 1.5]
    frame = score({"a": [-1.0, 1.0], "b": values})
    never = replace(above(0.0), together=True)

    assert verdicts(frame, never) == ["undecided", "holds"]

    negative = [-value for value in values]
    down = score({"a": [-1.0, 1.0], "b": negative})
    assert verdicts(down, never) == ["undecided", "undecided"]


def test_no_spread_over_seeds() -> None:
    same = score({"equal": [0.3, 0.3, 0.3], "more": [0.5, 0.5, 0.5], "less": [0.1, 0.1, 0.1]})

    assert verdicts(same, above(0.3)) == ["undecided", "holds", "fails"]

    thirds = score({"equal": [0.1 + 0.2, 0.3, 0.3]})  # differ by rounding
    assert verdicts(thirds, above(0.3)) == ["undecided"]


@pytest.mark.parametrize("bound", [0.2, 0.5, 0.9])
def test_shares_of_the_seeds_are_tested_exactly(bound: float) -> None:
    hits = {"none": 0, "some": 2, "all": 5}
    records = []
    for name, k in hits.items():
        for seed in range(5):
            records.append({"name": name, "seed": seed, "x": seed < k})

    shares = interval(pd.DataFrame(records), "x", ["name"])

    greater = [stats.binomtest(k, 5, bound, alternative="greater").pvalue for k in hits.values()]
    less = [stats.binomtest(k, 5, bound, alternative="less").pvalue for k in hits.values()]
    np.testing.assert_allclose(p_values(shares, above(bound)), [greater, less])
    np.testing.assert_allclose(p_values(shares, below(bound)), [less, greater])


def test_six_of_six_are_most_and_of_five_no_count_could_decide() -> None:
    """Of fair coins 6 fall alike by chance in 1/64, 5 in 1/32."""
    for n, verdict in ((6, "holds"), (5, "not tested"), (3, "not tested")):
        every = interval(pd.DataFrame({"seed": range(n), "x": True}), "x", [])
        assert verdicts(every, above(0.5)) == [verdict]


def test_zeros_are_equal_also_in_logarithms() -> None:
    zeros = score({"a": [0.0, 0.0, 0.0], "b": [1e-9, 1e-9, 1e-9]}, geometric=True)
    assert verdicts(zeros, below(0.2)) == ["holds", "holds"]
    assert verdicts(score({"a": [0.0, 1e-17, -1e-17]}), above(-1.0)) == ["holds"]


def test_what_is_not_tested_has_no_part_in_the_correction() -> None:
    values = [0.7, 1.0, 1.5]
    counted = score({"count": [3.0, 3.0], "none": [-1.0, -1.0], "b": values})
    found = judge(counted, above(0.0))

    assert found["verdict"].tolist() == ["holds", "fails", "holds"]
    assert found["note"].tolist() == ["the same for all seeds, not tested"] * 2 + [""]


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6).filter(lambda x: np.std(x) > 1e-3))
def test_a_single_line_holds_where_its_interval_lies_beyond_the_margin(values: list[float]) -> None:
    frame = score({"a": values})
    low = frame["low"].iloc[0]
    high = frame["high"].iloc[0]

    def holds(margin: Margin) -> bool:
        return verdicts(frame, margin) == ["holds"]

    assert holds(above(0.5)) == (low >= 0.5)
    assert holds(below(0.5)) == (high <= 0.5)
    assert holds(within(-0.5, 0.5)) == (low >= -0.5 and high <= 0.5)


def test_errors_are_as_rare_as_promised() -> None:
    """At the bound itself a claim of six conditions holds somewhere in at most 2.5% of samples, give or take 0.35%."""
    x = np.random.default_rng(0).normal(size=(2000, 6, 5))
    mean = x.mean(-1).ravel()
    error = stats.sem(x, axis=-1).ravel()
    frame = pd.DataFrame({"mean": mean, "error": error, "n": 5, "log": False})
    for margin in (above(0.0), below(0.0)):
        holds, _ = p_values(frame, margin)

        smallest = [np.nanmin(holm(claim)) for claim in holds.reshape(2000, 6)]
        share = np.mean(np.array(smallest) <= 0.025)
        assert 0.015 < share < 0.036


def test_rules() -> None:
    margins = above(1.0, "points"), below(-0.5, "times"), within(-1.0, 2.0)
    assert [margin.words for margin in margins] == ["above 1 point", "below -0.5 times", "from -1 to 2"]


def answer(*scores: Score) -> pd.DataFrame:
    claims = {f"claim{n}": Claim("It is positive.", score, above(0.0, "σ", "none")) for n, score in enumerate(scores)}
    return decide(Experiment(bears_on=("Q0",), figures={}, claims=claims, name="trial"), plant())


def test_there_is_a_row_for_each_condition() -> None:
    by = ("panel", "batch_size", "estimator", "momentum")
    found = answer(frames.score("evaluations", "accuracy", by, at=1.0, against="exact", scale=-100))

    assert list(found) == ["experiment", "claim", "condition", "where", "mean", "low", "high", "n", "verdict", "note"]

    shown = found[["experiment", "claim", "condition", "n", "verdict", "note"]].to_numpy().tolist()
    expected = {0.1: ["undecided", "holds by itself"], 0.5: ["holds", NO_SPREAD]}
    for size, momentum in ((4, 0.1), (4, 0.5), (32, 0.1), (32, 0.5)):
        condition = f"at the end of training, batch size {size}, EMA (momentum {momentum})"
        assert ["trial", "claim0", condition, 3, *expected[momentum]] in shown
    assert found["mean"].to_list() == pytest.approx([3, 1, 3, 1])


def test_conditions_have_panels_in_order_of_appearance() -> None:
    places = (answer(frames.score("gaps", "mean_gap", ("panel", "depth"), at=(1.0, 0.1), momentum=0.1,
                                     batch_size=4))["where"])  # fmt: skip
    late, early = "at the end of training", "after 10% of training"
    assert list(places) == [(late, "layer 1"), (late, "layer 2"), (early, "layer 1"), (early, "layer 2")]


def test_a_claim_without_rows_is_not_measured_and_may_tell_nothing_apart() -> None:
    nothing = frames.score("gaps", "mean_gap", ["depth"], at=0.3)
    whole = frames.score("gaps", "mean_gap", (), at=1.0, batch_size=4, momentum=0.1, layer="2")
    found = answer(nothing, whole)

    assert found["condition"].to_list() == ["no rows", ""]
    assert found["verdict"].to_list()[0] == "not measured"
    assert answer().empty


@pytest.mark.parametrize("error", [KeyError("oops"), UserError("no column 'x'"), SystemExit("enough")])
def test_a_claim_that_cannot_be_scored_says_why_and_leaves_the_others(error: BaseException) -> None:
    def fail(tables: Any) -> pd.DataFrame:
        raise error

    good = frames.score("evaluations", "accuracy", ("batch_size",), at=1.0, momentum=0.1)
    claims = {"bad": Claim("?", fail, above(0.0)), "good": Claim("!", good, above(0.0))}
    found = decide(Experiment(bears_on=(), figures={}, claims=claims), plant())

    (bad,) = found[found["claim"] == "bad"].to_dict("records")

    assert bad["verdict"] == CANNOT_BE_SCORED
    assert bad["n"] == 0
    assert "tests/harness/reporting/test_verdicts.py:" in bad["note"]
    assert str(error) in bad["note"]
    assert found.loc[found["claim"] == "good", "verdict"].tolist() == ["holds", "holds"]
