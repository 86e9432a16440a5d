"""The text on the literature: every judgement rests on a claim. Tests of its page stand in test_questions.py."""

from __future__ import annotations

import re

import pytest

from bnlab.harness.lab.registry import find_experiment, list_papers, list_questions
from experiments.literature import JUDGEMENTS, PAGE, REFERENCE, LiteratureFinding, list_findings
from experiments.pages import FIGURES

FINDINGS = list_findings()
HYPOTHESES = tuple(f"H{number}" for number in range(1, 15))


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
def test_what_is_judged_quotes_claims(finding: LiteratureFinding) -> None:
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


def test_what_would_tell_is_declared_and_not_measured() -> None:
    for name in {finding.lines["would tell"] for finding in FINDINGS if "would tell" in finding.lines}:
        assert name in list_questions()
        assert find_experiment(name).claims
        assert not (REFERENCE / name).exists(), f"{name} has results: judge again what it would tell"


def test_quoted_experiments_have_results() -> None:
    quoted = {experiment for finding in FINDINGS for _, experiment, _ in finding.list_quotes()}
    assert [name for name in quoted - {*list_papers()} if not (REFERENCE / name).is_dir()] == []
