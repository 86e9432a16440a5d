"""Sentences that are composed from verdicts, and the pages that are made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.reporting.answer import (
    Answer,
    compose_answer,
    describe_networks,
    format_number,
    format_range,
    summarize,
)
from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, above
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.page import Catalogue, write_experiment, write_html, write_markdown
from bnlab.harness.reporting.plots import GAP, Forest
from bnlab.harness.reporting.short import fill_sentence
from tests.harness.reporting.planted import plant


def rate(**means: tuple[str, float]) -> pd.DataFrame:
    """Verdicts by the names of conditions, which all are at the end of training."""
    rows = [{"where": ("late", name), "verdict": verdict, "mean": mean, "low": mean - 0.5, "high": mean + 0.5, "n": 5,
             "claim": "large"} for name, (verdict, mean) in means.items()]  # fmt: skip
    return pd.DataFrame(rows)


CLAIM = Claim("It is large.", lambda tables: tables["x"], above(1.0, "times", "none"))


def test_numbers_of_several_conditions_are_a_range_with_the_outermost_bounds() -> None:
    found = rate(a=("holds", 2.0), b=("holds", 10.0), c=("holds", -3.0))
    assert format_range(found, "points") == "-3.00 to 10.00 points (intervals from -3.50 to 10.50)"
    assert format_range(found.assign(low=np.nan, high=np.nan), "points") == "-3 to 10 points"


def test_numbers_have_two_digits_of_their_interval() -> None:
    numbers = (0.25, 0.25, 0.25), (1 / 3, 1 / 3, 1 / 3 + 1e-16), (1.2e-8, 1.1e-8, 1.3e-8), (0.1, np.nan, np.nan)
    words = ["0.250 [0.250, 0.250]", "0.333 [0.333, 0.333]", "1.2e-08 [1.1e-08, 1.3e-08]", "0.1"]
    assert [format_number(*of) for of in numbers] == words


def test_a_sentence_names_few_conditions_by_what_tells_them_apart_and_counts_many() -> None:
    found = rate(a=("holds", 2.0), b=("undecided", 1.2), c=("holds", 4.0))
    assert summarize(CLAIM, found) == (
        "It is large. (above 1 times) Holds — a: 2.00 [1.50, 2.50] times; c: 4.00 [3.50, 4.50] times. "
        "Undecided — b: 1.20 [0.70, 1.70] times."
    )
    assert "Holds — late, a: 2.00" in summarize(CLAIM, found[:1])
    many = rate(**{name: ("fails", float(n)) for n, name in enumerate("abcd")})
    assert "Fails — 4 of 4 conditions: 0.00 to 3.00 times (intervals" in summarize(CLAIM, many)
    assert "Fails — 4 of 5 conditions: " in summarize(CLAIM, pd.concat([many, rate(e=("holds", 2.0))]))


def test_networks_are_described_by_what_differs_and_what_is_shared() -> None:
    runs = plant()["runs"].assign(norm="ghost", averaging="none", status=["diverged"] + ["finished"] * 5)
    said = describe_networks(runs)
    assert said.startswith(
        "6 networks, 3 seeds: batch size 4, 32, data digits, norm ghost, epochs 2. Of these 1 diverged"
    )
    assert "averag" not in said


def answer(unit: str = "points", verdict: str = "holds") -> Answer:
    experiment = Experiment(
        answers=(), figures={}, claims={"large": Claim("", CLAIM.score, above(1.0, unit))}, name="e"
    )
    found = rate(
        **{"batch size 4": ("undecided", 0.2), "batch size 16": (verdict, 0.4), "batch size 160": (verdict, 0.5)}
    )
    return Answer(experiment, found, "", "")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{e.large: batch size 16: holds}", "0.40 points"),
        ("It costs {e.large: batch size 16, late|batch size 160: holds}.", "It costs 0.40 to 0.50 points."),
        ("{e.large: batch size 4|batch size 16: holds}", ""),
        ("{e.large: batch size 1: holds}", ""),
        ("{e.small: holds}", ""),
        ("{other.large: holds}", ""),
        ("Undecided{if e.large: batch size 4: undecided}.", "Undecided."),
        ("Undecided{if e.large: batch size 16: undecided}.", ""),
    ],
)
def test_a_quote_wants_its_condition_and_verdict(text: str, filled: str) -> None:
    assert fill_sentence(text, [answer()]) == filled


def test_shares_are_quoted_in_percent() -> None:
    assert fill_sentence("{e.large: undecided}", [answer("share", "undecided")]) == "20% to 50%"


def test_the_pages_have_questions_sentences_tables_and_figures(tmp_path: Path) -> None:
    cost = score("evaluations", "accuracy", ("batch_size",), at=1.0, against="exact", scale=-100, momentum=0.1)
    figure = Figure("Title", "Caption", cost, Forest("batch_size", GAP))
    experiment = Experiment(answers=("Q1", "H1"), figures={"cost": figure}, name="trial", question="What is <it>?",
                            claims={"costs": Claim("It costs.", cost, above(0.0, "points", "a reason"))},
                            source="A paper; `code`.")  # fmt: skip
    catalogue = Catalogue({"Q1": "What?", "Q2": "Else?"}, {"H1": "So."}, {"Q1": "It costs {trial.costs: holds}."})
    answers = [compose_answer(experiment, plant())]
    text = write_markdown(catalogue, answers)
    assert "In short: It costs 3.0 points." in text and "Not measured yet." in text
    assert "**Holds** — batch size 4: 3.0 [0.5, 5.5] points" in text and "[trial](trial/README.md)" in text
    own = write_experiment(answers[0])
    assert "| batch size 4 | 3.0 [0.5, 5.5] | 3 |" in own and "](figures/cost.png)" in own
    (tmp_path / "cost.png").write_bytes(b"image")
    page = write_html(catalogue, answers, {("trial", "cost"): tmp_path / "cost.png"})
    assert "What is &lt;it&gt;?" in page and "<code>code</code>" in page and "base64,aW1hZ2U=" in page
