"""Sentences that quote the answers' tables."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from bnlab.harness.reporting.answer import Answer
from bnlab.harness.reporting.experiment import Claim, Experiment, above
from bnlab.harness.reporting.short import fill_sentence


def answer(unit: str = "points", verdict: str = "holds") -> Answer:
    claim = Claim("large", "It is large.", lambda tables: tables["x"], above(1.0, unit, "none"))
    experiment = Experiment(name="e", question="?", answers=(), source="", columns={}, figures=(), claims=(claim,))
    rows = [("batch size 4", 0.21), ("batch size 16", 0.42), ("batch size 160", 0.42), ("blocks:16", 0.5)]
    found = [{"claim": "large", "where": ("early", size), "mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 5,
              "verdict": "undecided" if size == "batch size 4" else verdict} for size, mean in rows]  # fmt: skip
    return Answer(experiment, pd.DataFrame(found), "", "")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{e.large: batch size 16: holds}", "0.420 points"),
        ("{e.large: batch size 16, early|batch size 160: holds}", "0.420 points"),
        ("{e.large: batch size 4|batch size 16: holds}", ""),
        ("{e.large: batch size 1: holds}", ""),
        ("{e.large: blocks:16: holds}", "0.500 points"),
        ("{e.large: holds}", ""),
        ("{e.small: holds}", ""),
        ("{other.large: holds}", ""),
        ("Undecided{if e.large: batch size 4: undecided}.", "Undecided."),
        ("Undecided{if e.large: batch size 16: undecided}.", ""),
    ],
)
def test_a_quote_wants_its_condition_and_verdict(text: str, filled: str) -> None:
    assert fill_sentence(text, [answer()]) == filled


def test_a_sentence_is_not_for_other_settings() -> None:
    """Than those of the tables that it was written for."""
    text, found = "{e.large: batch size 16: holds}", answer()
    assert fill_sentence(text, [found])
    assert fill_sentence(text, [replace(found, changes="Other than in its own sweep: data digits.")]) == ""


def test_several_means_are_a_range_and_shares_in_percent() -> None:
    assert fill_sentence("{e.large: undecided}", [answer(verdict="undecided")]) == "0.210 to 0.500 points"
    assert fill_sentence("{e.large: undecided}", [answer("share", "undecided")]) == "21% to 50%"


def test_other_braces_are_refused() -> None:
    with pytest.raises(ValueError, match="no quote like"):
        fill_sentence("{e.large}", [answer()])
