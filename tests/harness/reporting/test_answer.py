"""Sentences that are composed from verdicts."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnlab.harness.reporting.answer import (
    describe_conditions,
    describe_images,
    describe_networks,
    format_number,
    format_range,
    group_conditions,
    join_values,
    summarize,
)
from bnlab.harness.reporting.experiment import Claim, above

EARLY, LATE = "after 20% of training", "at the end of training"
EVERY = [*itertools.product((EARLY, LATE), ("batch size 4", "batch size 16", "batch size 64"))]


@given(st.sets(st.tuples(*[st.sampled_from("abc")] * 3)))
def test_groups_are_all_combinations_and_leave_nothing_out(conditions: set[tuple[str, ...]]) -> None:
    groups = group_conditions(sorted(conditions))
    assert sorted(itertools.chain(*groups)) == sorted(conditions)
    for group in groups:
        assert set(group) == set(itertools.product(*({*column} for column in zip(*group, strict=True))))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (EVERY, ["all 6 conditions"]),
        (EVERY[:3], [EARLY]),
        ([EVERY[0], EVERY[3]], ["batch size 4"]),
        ([EVERY[0], EVERY[1], EVERY[3], EVERY[4]], ["batch size 4 and 16"]),
        ([EVERY[0], *EVERY[3:]], [f"{EARLY}, batch size 4", LATE]),
        ([EVERY[5]], [f"{LATE}, batch size 64"]),
    ],
)
def test_conditions_are_named_by_what_sets_them_apart(chosen: list[tuple[str, ...]], words: list[str]) -> None:
    assert [describe_conditions(group, EVERY) for group in group_conditions(chosen)] == words


def test_what_all_conditions_share_is_said() -> None:
    every = [(LATE, "batch size 4"), (LATE, "batch size 16")]
    assert describe_conditions(every, every) == LATE
    assert describe_conditions(every[:1], every) == f"{LATE}, batch size 4"
    assert describe_conditions([("",)], [("",)]) == ""
    assert describe_conditions([("a",), ("b",)], [("a",), ("b",)]) == "both conditions"


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        (["a"], "a"),
        (["a", "b", "c"], "a, b and c"),
        (["batch size 4", "batch size 16", "batch size 64"], "batch size 4, 16 and 64"),
        ([EARLY, LATE], "after 20% and at the end of training"),
        (["the EMA", "the EMA of both"], "the EMA and EMA of both"),
    ],
)
def test_words_that_values_share_are_said_once(values: list[str], phrase: str) -> None:
    assert join_values(values) == phrase


def score(**means: tuple[str, float]) -> pd.DataFrame:
    rows = [{"where": (name,), "verdict": verdict, "mean": mean, "low": mean - 0.5, "high": mean + 0.5, "n": 5}
            for name, (verdict, mean) in means.items()]  # fmt: skip
    return pd.DataFrame(rows)


def test_numbers_of_several_conditions_are_a_range_with_the_outermost_bounds() -> None:
    found = score(a=("holds", 2.0), b=("holds", 10.0), c=("holds", -3.0))
    assert format_range(found, "points") == "-3.00 to 10.00 points (intervals from -3.50 to 10.50)"
    assert format_range(found[:1], "points") == "2.00 [1.50, 2.50] points"
    one_seed = found.assign(n=1, low=np.nan, high=np.nan)
    assert format_range(one_seed, "points") == "2, 10, -3 points"
    nothing = found[:1].assign(mean=np.nan, low=np.nan, high=np.nan, n=0)
    assert format_range(nothing, "points") == "no row for it"
    assert format_range(pd.concat([found, nothing]), "") == "-3.00 to 10.00 (intervals from -3.50 to 10.50)"
    # A geometric mean of values of which one is 0 has no interval.
    zero = found[:1].assign(mean=0.0, low=np.nan, high=np.nan)
    assert format_range(zero, "times") == "0 times"
    assert format_range(pd.concat([found[:1], zero]), "times") == "2.00 [1.50, 2.50], 0 times"


def test_networks_that_agree_have_no_interval() -> None:
    same = score(a=("holds", 0.0), b=("holds", 0.0)).assign(low=0.0, high=0.0)
    assert format_range(same, "points") == "0.000 points, the same in all 5 networks"
    other = same.assign(mean=[0.25, 0.5], low=[0.25, 0.5], high=[0.25, 0.5])
    assert format_range(other, "") == "0.250 to 0.500, each the same in all 5 networks"
    assert format_range(score(a=("holds", 2.0), b=("holds", 2.0)), "") == "2.00 (intervals from 1.50 to 2.50)"
    assert format_number(1.2e-8, 1.1e-8, 1.3e-8, 5) == "1.2e-08 [1.1e-08, 1.3e-08]"


def test_a_sentence_takes_the_conditions_of_a_verdict_together() -> None:
    found = score(a=("holds", 2.0), b=("undecided", 1.2), c=("holds", 4.0))
    claim = Claim("x", "It is large.", lambda tables: found, above(1.0, "times"))
    assert summarize(claim, found) == (
        "It is large. (above 1 times) Holds — a and c: 2.00 to 4.00 times (intervals from 1.50 to 4.50). "
        "Undecided — b: 1.20 [0.70, 1.70] times."
    )


def test_many_undecided_conditions_are_counted() -> None:
    names = [f"{letter}{n}" for n, letter in enumerate("aabbccdd")]
    found = score(**{name: ("undecided" if n % 2 else "holds", float(n)) for n, name in enumerate(names)})
    pairs = found.assign(where=[(name[0], name[1]) for name in names])
    claim = Claim("x", "It is.", lambda tables: pairs, above(1.0, "times"))
    said = summarize(claim, pairs)
    assert said.endswith("Undecided — 4 of 8 conditions: 1.00 to 7.00 times (intervals from 0.50 to 7.50).")
    assert "Holds — a, 0: 0.00" in said and said.count(";") == 3


def test_what_all_networks_share_is_said_where_it_is_unusual() -> None:
    usual = pd.DataFrame({"seed": [0, 1], "norm": "batch", "order": "shuffled", "averaging": "none", "freeze_at": 1.0,
                          "norm.every_second": "none", "data.shift": 0, "data.flip": False})  # fmt: skip
    words = ["norm ghost", "norm.every second group", "order sorted", "weights averaged by swa", "freeze at 0.8"]
    words += ["data.shift 2"]
    assert not any(word.split()[0] in describe_networks(usual) for word in words)
    others = usual.assign(norm="ghost", order="sorted", averaging="swa", freeze_at=0.8)
    others = others.assign(**{"norm.every_second": "group", "data.shift": 2})
    assert f": {', '.join(words)}." in describe_networks(others)


@pytest.mark.parametrize(
    ("split", "shift", "said"),
    [
        (["test"], ["none"], ""),
        (["test"], ["none", "noise:1"], ""),
        (["test"], ["noise:1"], "shift noise:1"),
        (["val"], ["blur:2"], "split val, shift blur:2"),
    ],
)
def test_other_images_are_said_where_all_predictions_are_of_them(split: list[str], shift: list[str], said: str) -> None:
    rows = pd.DataFrame(itertools.product(split, shift), columns=["split", "shift"])
    assert describe_images({"evaluations": rows}) == (said and f"Predictions are of other images: {said}.")
    assert describe_images({}) == ""
