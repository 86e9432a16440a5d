"""Verdicts against scipy's tests of plain arrays; scores get what their experiment declares, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnlab.harness.errors import UserError
from bnlab.harness.reporting import frames
from bnlab.harness.reporting.frames import interval
from bnlab.harness.reporting.outcome import decide
from bnlab.harness.reporting.question import Claim, Margin, Question, Score, above, below, within
from bnlab.harness.reporting.verdicts import Lines, holm, judge
from tests.harness.reporting.planted import plant

SAMPLES = {
    "wide": [0.2, 3.1, -2.4, 1.0],
    "high": [1.9, 2.1, 2.05, 2.2],
    "low": [-3.0, -3.2, -2.9],
    "near": [1.2, 1.3, 1.6],
    "one": [5.0],
}


def verdicts(frame: pd.DataFrame, margin: Margin) -> list[str]:
    return list(judge(frame, margin, "each")["verdict"])


def score(samples: dict[str, list[float]], **options: Any) -> pd.DataFrame:
    records = [(name, seed, x) for name, values in samples.items() for seed, x in enumerate(values)]
    return interval(pd.DataFrame(records, columns=["name", "seed", "x"]), "x", ["name"], **options)


def one_sided(values: list[float], bound: float, side: str) -> float:
    from scipy import stats  # which takes long to import

    return float(stats.ttest_1samp(np.array(values, float), bound, alternative=side).pvalue)


def decide_by_scipy(values: list[float], margin: Margin) -> str:
    bounds = {"greater": margin.low, "less": margin.high}
    finite = {side: bound for side, bound in bounds.items() if np.isfinite(bound)}
    other = {"greater": "less", "less": "greater"}
    if max(one_sided(values, bound, side) for side, bound in finite.items()) <= 0.025:
        return "holds"
    smallest = min(one_sided(values, bound, other[side]) for side, bound in finite.items())
    return "fails" if len(finite) * smallest <= 0.025 else "undecided"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=6).filter(lambda x: np.std(x) > 1e-3),
    st.sampled_from([above(1.0), above(0.0), below(-1.0), below(2.5), within(-1.0, 1.5), within(1.8, 2.3)]),
)
def test_verdicts_are_those_of_scipys_tests_also_of_logarithms(values: list[float], margin: Margin) -> None:
    assert verdicts(score({"a": values}), margin) == [decide_by_scipy(values, margin)]
    low = np.exp(margin.low) if np.isfinite(margin.low) else margin.low
    positive = replace(margin, low=low, high=np.exp(margin.high))
    assert verdicts(score({"a": np.exp(values).tolist()}, geometric=True), positive) == verdicts(
        score({"a": values}), margin
    )


def test_conditions_are_corrected_in_order_of_their_p_values() -> None:
    """By Holm the largest of three p-values is not corrected; by Bonferroni it would be, by a factor of three."""
    clear = [1.0, 1.01, 0.99]
    frame = score({"a": clear, "b": clear, "c": [0.7, 1.0, 1.5]})

    assert verdicts(frame, above(0.0)) == ["holds", "holds", "holds"]


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


BETWEEN = [0.7, 1.0, 1.5]  # above 0 alone, not among two
NOTHING = [-1.0, 1.0]


def decide_lines(frame: pd.DataFrame, margin: Margin, lines: Lines) -> list[list[str]]:
    return judge(frame, margin, lines).to_numpy().tolist()


def test_a_line_among_others_is_corrected_for_their_number() -> None:
    """What holds alone is undecided beside others, and the note says so, whatever the claim says of its lines."""
    assert 0.0125 < one_sided(BETWEEN, 0.0, "greater") < 0.025
    assert verdicts(score({"b": BETWEEN}), above(0.0)) == ["holds"]

    both = score({"a": NOTHING, "b": BETWEEN})

    for lines in get_args(Lines):
        first, (verdict, note) = decide_lines(both, above(0.0), lines)
        assert first == ["undecided", ""]
        assert verdict == "undecided"
        assert note.startswith("holds ") and note.endswith(" 2")


def test_a_claim_about_each_line_holds_without_a_correction_where_each_line_does() -> None:
    twice = score({"a": BETWEEN, "b": BETWEEN})

    assert decide_lines(twice, above(0.0), "each") == [["holds", ""], ["holds", ""]]
    assert [verdict for verdict, _ in decide_lines(twice, above(0.0), "some")] == ["undecided", "undecided"]
    assert [verdict for verdict, _ in decide_lines(twice, below(0.0), "each")] == ["undecided", "undecided"]


def test_a_claim_about_some_lines_fails_without_a_correction_where_each_line_does() -> None:
    twice = score({"a": BETWEEN, "b": BETWEEN})

    assert decide_lines(twice, below(0.0), "some") == [["fails", ""], ["fails", ""]]


def test_a_claim_about_each_line_does_not_hold_where_one_was_not_tested() -> None:
    beside_one_seed = score({"a": BETWEEN, "b": BETWEEN, "c": [5.0]})

    found = [verdict for verdict, _ in decide_lines(beside_one_seed, above(0.0), "each")]

    assert found == ["undecided", "undecided", "one seed"]


def test_all_or_none_in_each_seed_is_not_tested() -> None:
    shares = score({"all": [1.0, 1.0, 1.0], "none": [0.0, 0.0, 0.0], "half": [0.5, 0.5, 0.5]})

    assert verdicts(shares, above(0.4, "share")) == ["not tested", "not tested", "holds"]
    assert verdicts(shares, above(0.4, "points")) == ["holds", "fails", "holds"]


def test_no_spread_over_seeds() -> None:
    same = score({"equal": [0.3, 0.3, 0.3], "more": [0.5, 0.5, 0.5], "less": [0.1, 0.1, 0.1]})

    assert verdicts(same, above(0.3)) == ["undecided", "holds", "fails"]

    thirds = score({"equal": [0.1 + 0.2, 0.3, 0.3]})  # differ by rounding
    assert verdicts(thirds, above(0.3)) == ["undecided"]


def test_six_of_six_are_most_and_of_five_no_count_could_decide() -> None:
    """Of fair coins 6 fall alike by chance in 1/64, 5 in 1/32."""
    for n, verdict in ((6, "holds"), (5, "not tested"), (3, "not tested")):
        every = interval(pd.DataFrame({"seed": range(n), "x": True}), "x", [])
        assert verdicts(every, above(0.5)) == [verdict]


def test_a_share_of_few_networks_is_written_as_a_count() -> None:
    shares = interval(pd.DataFrame({"seed": range(3), "x": [True, False, True]}), "x", [])
    most = Claim("Most do.", lambda tables: shares, above(0.5, "share", "more than half is most"), lines="each")
    question = Question(figures={}, claims={"most": most}, name="trial")

    (row,) = decide(question, {"trial": {}}).to_dict("records")

    assert row["number"] == "2 of 3"
    assert row["said"] == "not tested"


def test_zeros_are_equal_also_in_logarithms() -> None:
    zeros = score({"a": [0.0, 0.0, 0.0], "b": [1e-9, 1e-9, 1e-9]}, geometric=True)
    assert verdicts(zeros, below(0.2)) == ["holds", "holds"]
    assert verdicts(score({"a": [0.0, 1e-17, -1e-17]}), above(-1.0)) == ["holds"]
    assert verdicts(score({"positive": [1.0, 2.0]}, geometric=True), above(-1.0)) == ["holds"]


def test_what_is_not_tested_has_no_part_in_the_correction() -> None:
    values = [0.7, 1.0, 1.5]
    counted = score({"count": [3.0, 3.0], "none": [-1.0, -1.0], "one": [1.0], "b": values})
    found = judge(counted, above(0.0), "each")

    assert found["verdict"].tolist() == ["holds", "fails", "one seed", "holds"]
    assert found["note"].map(bool).tolist() == [True, True, False, False], "two were not tested"


def test_errors_are_as_rare_as_promised() -> None:
    """At the bound itself a claim of six conditions holds somewhere in at most 2.5% of samples, give or take 0.7%."""
    x = np.random.default_rng(0).normal(size=(500, 6, 5))
    means = x.mean(-1)
    errors = x.std(-1, ddof=1) / 5**0.5
    held = 0
    for mean, error in zip(means, errors, strict=True):
        held += "holds" in verdicts(pd.DataFrame({"mean": mean, "error": error, "n": 5, "log": False}), above(0.0))
    assert 0.005 < held / 500 < 0.045


def answer(*scores: Score) -> pd.DataFrame:
    claims = {
        f"claim{n}": Claim("It is positive.", score, above(0.0, "σ", "none"), lines="each")
        for n, score in enumerate(scores)
    }
    return decide(Question(bears_on=("Q0",), figures={}, claims=claims, name="trial"), {"trial": plant()})


def test_there_is_a_row_for_each_condition() -> None:
    by = ("panel", "batch_size", "estimator", "momentum")
    found = answer(frames.score("evaluations", "accuracy", by, at=1.0, against="exact", scale=-100))

    assert found[["experiment", "claim", "n", "verdict"]].to_numpy().tolist() == [["trial", "claim0", 3, "holds"]] * 4
    assert found["note"].map(bool).tolist() == [False, True, False, True], "alike in all seeds"
    assert found["mean"].to_list() == pytest.approx([3, 1, 3, 1])
    for condition, (size, momentum) in zip(found["condition"], product((4, 32), (0.1, 0.5)), strict=True):
        assert condition.startswith(frames.share_name(1))
        assert f"batch size {size}," in condition and f"momentum {momentum}" in condition


def test_conditions_have_panels_in_order_of_appearance() -> None:
    places = (answer(frames.score("gaps", "mean_gap", ("panel", "depth"), at=(1.0, 0.1), momentum=0.1,
                                     batch_size=4))["where"])  # fmt: skip
    late, early = frames.share_name(1.0), frames.share_name(0.1)
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
    claims = {"bad": Claim("?", fail, above(0.0), lines="each"), "good": Claim("!", good, above(0.0), lines="each")}
    found = decide(Question(figures={}, claims=claims, name="trial"), {"trial": plant()})

    (bad,) = found[found["claim"] == "bad"].to_dict("records")

    assert bad["verdict"] == "cannot be scored"
    assert bad["n"] == 0
    assert "tests/harness/reporting/test_verdicts.py:" in bad["note"]
    assert str(error) in bad["note"]
    assert found.loc[found["claim"] == "good", "verdict"].tolist() == ["holds", "holds"]


def test_the_smallest_of_several_p_values_is_corrected_by_their_number_and_the_largest_not() -> None:
    adjusted = holm(np.array([0.03, 0.01, np.nan, 0.02]))

    # Sorted: 3 times 0.01, 2 times 0.02, and 0.03 is raised to what comes before it.
    assert adjusted.tolist() == pytest.approx([0.04, 0.03, np.nan, 0.04], nan_ok=True)
