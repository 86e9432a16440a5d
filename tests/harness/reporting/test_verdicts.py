"""Verdicts against scipy's tests of plain arrays; scores get what their experiment declares, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.experiment import (
    Claim,
    Experiment,
    Rule,
    Tables,
    above,
    answers,
    below,
    declared,
    holm,
    p_values,
    verdicts,
    within,
)
from bnlab.harness.reporting.frames import interval, rows

SAMPLES = {
    "wide": [0.2, 3.1, -2.4, 1.0],
    "high": [1.9, 2.1, 2.05, 2.2],
    "low": [-3.0, -3.2, -2.9],
    "near": [0.9, 1.3, 1.6],
    "one": [5.0],
}


def score(samples: dict[str, list[float]], **options: Any) -> pd.DataFrame:
    records = [(name, seed, x) for name, values in samples.items() for seed, x in enumerate(values)]
    return interval(pd.DataFrame(records, columns=["name", "seed", "x"]), "x", ["name"], **options)


def one_sided(values: list[float], bound: float, side: str) -> float:
    return float(stats.ttest_1samp(np.array(values, float), bound, alternative=side).pvalue)


def expected(values: list[float], rule: Rule) -> tuple[float, float]:
    """p-values of the rule and of its opposite, by scipy."""
    if len(values) < 2:
        return np.nan, np.nan
    bounds = {"greater": rule.low, "less": rule.high}
    finite = {side: bound for side, bound in bounds.items() if np.isfinite(bound)}
    other = {"greater": "less", "less": "greater"}
    holds = max(one_sided(values, bound, side) for side, bound in finite.items())
    fails = [one_sided(values, bound, other[side]) for side, bound in finite.items()]
    return holds, min(1, len(fails) * min(fails))


@pytest.mark.parametrize("rule", [above(1.0), above(0.0), below(-1.0), below(2.5), within(-1.0, 1.5), within(1.8, 2.3)])
def test_p_values_are_those_of_scipy(rule: Rule) -> None:
    found = p_values(score(SAMPLES), rule)
    wanted = np.array([expected(values, rule) for values in SAMPLES.values()]).T
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("rule", [above(1.0), below(2.0), within(0.5, 2.0), above(-1.0)])
def test_geometric_p_values_are_those_of_logarithms(rule: Rule) -> None:
    positive = {name: np.exp(values).tolist() for name, values in SAMPLES.items()}
    logs = {name: np.log(values).tolist() for name, values in positive.items()}
    with np.errstate(divide="ignore"):
        bounds = Rule(*(float(np.log(max(bound, 0))) for bound in (rule.low, rule.high)))
    if rule.low == -1:  # above a negative bound, any positive value is
        assert set(verdicts(score({"two": [1.0, 2.0]}, geometric=True), rule)) == {"holds"}
        return
    wanted = np.array([expected(values, bounds) for values in logs.values()]).T
    np.testing.assert_allclose(p_values(score(positive, geometric=True), rule), wanted, rtol=1e-9)


def test_a_closed_form() -> None:
    """Two seeds: t has one degree of freedom, and p = 1/2 − arctan(t)/π."""
    holds, fails = p_values(score({"two": [1.0, 3.0]}), above(0.0))  # mean 2, error 1
    assert holds[0] == pytest.approx(0.5 - np.arctan(2) / np.pi) and holds[0] + fails[0] == pytest.approx(1)


def test_holm_by_hand() -> None:
    # 0.01·4, 0.011·3 (not below 0.04), 0.02·2, 0.5
    assert holm(np.array([0.5, 0.011, 0.02, 0.01])) == pytest.approx([0.5, 0.04, 0.04, 0.04])
    assert holm(np.array([0.6, np.nan, 0.7])) == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert holm(np.array([np.nan, np.nan])) == pytest.approx([np.nan] * 2, nan_ok=True)


def test_each_verdict() -> None:
    rule, frame = above(0.0), score(SAMPLES)
    assert dict(zip(SAMPLES, verdicts(frame, rule), strict=True)) == {
        "wide": "undecided",
        "high": "holds",
        "low": "fails",
        "near": "holds",
        "one": "one seed",
    }
    assert verdicts(frame, below(0.0)) == ["undecided", "fails", "holds", "fails", "one seed"]
    assert verdicts(frame, within(-1.0, 1.0)) == ["undecided", "fails", "fails", "undecided", "one seed"]
    assert verdicts(frame, within(1.0, 3.0)) == ["undecided", "holds", "fails", "undecided", "one seed"]
    assert verdicts(score({"none": [np.nan, np.nan]}), rule) == ["not measured"]


def test_holm_decides_over_the_conditions_of_a_claim() -> None:
    """What holds by itself is undecided beside others."""
    values = [0.4, 1.0, 1.5]
    assert 0.025 < one_sided(values, 0.0, "greater") < 0.05
    assert verdicts(score({"b": values}), above(0.0)) == ["holds"]
    assert verdicts(score({"a": [-1.0, 1.0], "b": values}), above(0.0)) == ["undecided", "undecided"]
    assert verdicts(score({"a": [1.0], "b": values}), above(0.0)) == ["one seed", "holds"]  # no test, no correction


def test_no_spread_over_seeds() -> None:
    same = score({"equal": [0.3, 0.3, 0.3], "more": [0.5, 0.5, 0.5], "less": [0.1, 0.1, 0.1]})
    assert verdicts(same, above(0.3)) == ["undecided", "holds", "fails"]
    thirds = score({"equal": [0.1 + 0.2, 0.3, 0.3]})  # differ by rounding
    assert verdicts(thirds, above(0.3)) == ["undecided"]


@pytest.mark.parametrize("bound", [0.2, 0.5, 0.9])
def test_shares_of_the_seeds_are_tested_exactly(bound: float) -> None:
    hits = {"none": 0, "some": 2, "all": 5}
    records = [(name, seed, seed < k) for name, k in hits.items() for seed in range(5)]
    shares = interval(pd.DataFrame(records, columns=["name", "seed", "x"]), "x", ["name"])
    wanted = {
        side: [stats.binomtest(k, 5, bound, alternative=side).pvalue for k in hits.values()]
        for side in ("greater", "less")
    }
    np.testing.assert_allclose(p_values(shares, above(bound)), [wanted["greater"], wanted["less"]])
    np.testing.assert_allclose(p_values(shares, below(bound)), [wanted["less"], wanted["greater"]])


def test_five_of_five_are_most_and_four_of_four_are_not() -> None:
    """Of fair coins 5 fall alike by chance in 1/32, 4 in 1/16."""
    for n, verdict in ((5, "holds"), (4, "undecided")):
        every = interval(pd.DataFrame({"seed": range(n), "x": True}), "x", [])
        assert verdicts(every, above(0.5)) == [verdict]


def test_errors_are_as_rare_as_promised() -> None:
    """At the bound itself a claim of six conditions holds somewhere in at most 5% of samples (σ of the count: 0.5%)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 6, 5))
    frame = pd.DataFrame({"mean": x.mean(-1).ravel(), "error": stats.sem(x, axis=-1).ravel(), "n": 5, "log": False})
    for rule in (above(0.0), below(0.0)):
        holds, _ = p_values(frame, rule)
        share = np.mean([(holm(p) <= 0.05).any() for p in holds.reshape(2000, 6)])
        assert 0.03 < share < 0.065


def test_rules() -> None:
    assert [str(rule) for rule in (above(1), below(-0.5), within(-1, 2))] == ["above 1", "below -0.5", "from -1 to 2"]
    with pytest.raises(ValueError, match="the lower bound comes first, found 2, 1"):
        within(2, 1)
    with pytest.raises(ValueError, match="the lower bound comes first, found nan, inf"):
        above(np.nan)


def planted() -> dict[str, pd.DataFrame]:
    runs = pd.DataFrame({"run": list("abcd"), "seed": [0, 1] * 2, "batch_size": [32, 32, 4, 4], "steps": 10,
                         "final_loss": 1.0})  # fmt: skip
    gaps = pd.DataFrame({"run": list("abcd"), "step": 10, "estimator": "ema", "momentum": 0.1, "layer": "x"})
    return {"runs": runs, "gaps": gaps.assign(mean_gap=[2.0, 2.1, -2.0, -2.1], kl=1.0), "drift": gaps[:0]}


def score_gaps(tables: Tables) -> pd.DataFrame:
    return interval(rows(tables, "gaps", (1.0,)), "mean_gap", ["panel", "batch_size", "momentum"])


CLAIM = Claim("positive", "It is positive.", score_gaps, above(0.0, "σ", "0 is no effect"))
EXPERIMENT = Experiment(name="trial", question="?", answers=("Q0",), source="none", columns={"gaps": ("mean_gap",)},
                        figures=(), claims=(CLAIM,))  # fmt: skip


def test_answers_has_a_row_for_each_condition() -> None:
    found = answers(EXPERIMENT, planted())
    assert list(found) == ["experiment", "claim", "condition", "where", "mean", "low", "high", "n", "verdict"]
    shown = found[["experiment", "claim", "condition", "mean", "n", "verdict"]].values.tolist()
    assert shown == [
        ["trial", "positive", "at the end of training, batch size 4, momentum 0.1", -2.05, 2, "fails"],
        ["trial", "positive", "at the end of training, batch size 32, momentum 0.1", 2.05, 2, "holds"],
    ]
    half = stats.t.ppf(0.975, 1) * 0.05  # of the condition alone
    assert found["low"].to_list() == pytest.approx([-2.05 - half, 2.05 - half])


def test_conditions_name_estimators_and_keep_the_order_of_panels() -> None:
    frame = pd.DataFrame({"panel": ["z", "z", "a"], "estimator": ["precise", "ema", "ema"],
                          "momentum": [np.nan, 0.1, 0.2], "mean": 1.0, "low": 0.0, "high": 2.0, "n": 3, "error": 1.0,
                          "log": False})  # fmt: skip
    found = answers(replace(EXPERIMENT, claims=(replace(CLAIM, score=lambda _: frame),)), planted())
    assert found["condition"].to_list() == ["z, EMA (momentum 0.1)", "z, precise BN", "a, EMA (momentum 0.2)"]


def test_a_claim_answers_what_its_experiment_does() -> None:
    assert replace(EXPERIMENT, claims=(replace(CLAIM, answers=("Q0",)),))
    with pytest.raises(ValueError, match="trial: claim positive answers Q1, which the experiment does not list"):
        replace(EXPERIMENT, claims=(replace(CLAIM, answers=("Q1",)),))


def test_a_claim_without_rows_is_not_measured() -> None:
    nothing = replace(CLAIM, score=lambda tables: score_gaps(tables)[:0])
    (row,) = answers(replace(EXPERIMENT, claims=(nothing,)), planted()).to_dict("records")
    assert (row["condition"], row["n"], row["verdict"]) == ("no rows", 0, "not measured")
    assert answers(replace(EXPERIMENT, claims=()), planted()).empty


def test_a_score_without_an_interval() -> None:
    plain = replace(CLAIM, score=lambda tables: tables["gaps"])
    with pytest.raises(UserError, match="claim positive: its score has no column 'mean'"):
        answers(replace(EXPERIMENT, claims=(plain,)), planted())


def test_a_condition_has_one_row() -> None:
    twice = replace(CLAIM, score=lambda tables: pd.concat([score_gaps(tables)] * 2))
    with pytest.raises(UserError, match=r"claim positive: its score has several rows of one condition; .*'batch_size'"):
        answers(replace(EXPERIMENT, claims=(twice,)), planted())


def test_a_score_may_tell_nothing_apart() -> None:
    """One row of all, which pandas refused to compare by no column."""
    whole = replace(CLAIM, score=lambda tables: interval(rows(tables, "gaps", (1.0,), batch_size=4), "mean_gap", ()))
    found = answers(replace(EXPERIMENT, claims=(whole,)), planted())
    assert found["where"].to_list() == [()] and len(found) == 1


def test_names_are_not_given_twice() -> None:
    with pytest.raises(ValueError, match="trial: two claims are called 'positive'; give each its own name"):
        replace(EXPERIMENT, claims=(CLAIM, CLAIM))


def test_a_score_that_writes_changes_nothing_for_the_next() -> None:
    def write(tables: Tables) -> pd.DataFrame:
        gaps = tables["gaps"]
        gaps["mean_gap"] = 1.0
        return score_gaps(tables)

    careless = replace(CLAIM, id="careless", score=write)
    found = answers(replace(EXPERIMENT, claims=(careless, CLAIM)), planted())
    alone = answers(EXPERIMENT, planted())
    assert found[2:]["mean"].to_list() == found[:2]["mean"].to_list() == alone["mean"].to_list()


def test_scores_get_what_is_declared() -> None:
    available = declared(EXPERIMENT, planted())
    assert set(available) == {"runs", "gaps"} and "final_loss" not in available["runs"]
    assert set(available["gaps"]) == {"run", "step", "estimator", "momentum", "mean_gap"}
    with pytest.raises(UserError, match="table 'drift' is not declared"):
        available["drift"]
    with pytest.raises(UserError, match="no column 'kl'; is it not declared in the experiment's columns"):
        interval(rows(available, "gaps"), "kl", ["batch_size"])
    more = declared(replace(EXPERIMENT, columns={"runs": ("final_loss",)}), planted())
    assert "final_loss" in more["runs"] and set(more) == {"runs"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"gap": ()}, "there is no table 'gap'; choose from runs, gaps, drift"),
        ({"gaps": ("gap",)}, "table gaps has no column 'gap'"),
        ({"drift": ("layer",)}, "the table drift has no rows"),
    ],
)
def test_what_is_declared_must_be_there(columns: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        declared(replace(EXPERIMENT, columns=columns), planted())
