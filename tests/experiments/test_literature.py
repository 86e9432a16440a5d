"""The page on the literature: it is what the text and the claims give, and every judgement rests on a claim."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.lab.catalogue import find_experiment, list_papers, list_questions
from bnlab.harness.reporting.outcome import Outcome, fill_paragraphs
from experiments.literature import JUDGEMENTS, PAGE, REFERENCE, Finding, decide, list_findings, write_page
from experiments.pages import FIGURES
from tests.experiments.test_questions import find_outcomes

# With those of questions in one process, which find the outcomes once.
pytestmark = pytest.mark.xdist_group("outcomes")

FINDINGS = list_findings()
HYPOTHESES = tuple(f"H{number}" for number in range(1, 15))
QUOTE = re.compile(r"{{.*?}}")
MEASURED = re.compile(r"\d(?:%(?! of training)| points?| times| σ)")


@cache
def find_all() -> list[Outcome]:
    """Find the outcomes of all experiments, and of the papers that are quoted."""
    quoted = {name for finding in FINDINGS for _, name, _ in finding.list_quotes()}
    return [*find_outcomes(), *(decide(name) for name in quoted & {*list_papers()})]


def test_the_page_is_the_one_that_the_claims_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_page(find_all()), "run: python -m experiments.literature"


def test_a_changed_verdict_stops_the_page() -> None:
    def change(outcome: Outcome) -> Outcome:
        frame = outcome.frame.copy()
        is_quoted = frame["claim"] == "batches_win_when_tiny"
        frame.loc[is_quoted, "verdict"] = "holds"
        return replace(outcome, frame=frame)

    outcomes = [change(outcome) if outcome.experiment.name == "ghost" else outcome for outcome in find_all()]

    with pytest.raises(UserError, match=r"F3b: a quoted claim has another verdict"):
        write_page(outcomes)


def test_every_figure_and_hypothesis_is_judged_once() -> None:
    numbers = [finding.number for finding in FINDINGS]

    assert len({*numbers}) == len(numbers)
    assert {*FIGURES, *HYPOTHESES} == {re.sub("[a-z]$", "", number) for number in numbers if number[0] in "FH"}


def test_the_counts_are_those_of_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    sentences = page.split("\n\n")[1]
    of_papers, expected = (list(map(int, re.findall(r"\d+", part))) for part in sentences.split(". Of "))

    for number, judgement in enumerate(JUDGEMENTS, 1):
        row = f"| **{judgement}** | "
        assert page.count(row) == of_papers[number] + expected[number] + 1, judgement  # and once in the overview
    assert of_papers[0] == sum(of_papers[1:])
    assert expected[0] == sum(expected[1:])
    assert of_papers[0] + expected[0] == len(FINDINGS)


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.number)
def test_what_is_judged_quotes_claims(finding: Finding) -> None:
    verdicts = {verdict for verdict, _, _ in finding.list_quotes()}
    if finding.judgement == "agrees":
        assert verdicts == {"holds"}
    if finding.judgement == "agrees in part":
        assert "holds" in verdicts
        assert verdicts & {"undecided", "fails"}
    if finding.judgement == "contradicts":
        assert verdicts
        assert finding.lines["contradicts"].startswith("It may be us")
    if finding.judgement == "undecided":
        assert "undecided" in verdicts or {"holds", "fails"} <= verdicts
    if finding.judgement == "not tried":
        assert "here" not in finding.lines


def test_numbers_from_here_come_from_claims_and_nothing_gains_less_than_nothing() -> None:
    for finding in FINDINGS:
        here = finding.lines.get("here", "")
        shown = " ".join(fill_paragraphs(here, find_all()))
        assert not re.findall(r"\b(?:gains?|costs?|loses?|lost) -[\d.]+", shown), finding.number

        by_hand = QUOTE.sub("", here)
        without_margins = re.sub(r"0\.3 points|0\.[18] σ", "", by_hand)
        assert not MEASURED.findall(without_margins), finding.number
        assert not [text for word, text in finding.lines.items() if word != "here" and "{{" in text], finding.number


def test_what_would_tell_is_declared_and_not_measured() -> None:
    for name in {finding.lines["would tell"] for finding in FINDINGS if "would tell" in finding.lines}:
        assert name in list_questions()
        assert find_experiment(name).claims
        assert not (REFERENCE / name).exists(), f"{name} has results: judge again what it would tell"


def test_quoted_experiments_have_results() -> None:
    quoted = {experiment for finding in FINDINGS for _, experiment, _ in finding.list_quotes()}
    assert [name for name in quoted - {*list_papers()} if not (REFERENCE / name).is_dir()] == []
