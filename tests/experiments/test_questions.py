"""Every question: its declarations, and that the reference tables answer and draw it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting import drawing, style
from bnlab.harness.reporting.answer import Answer, compose_answer
from bnlab.harness.reporting.experiment import NOT_MEASURED, Experiment, Tables
from bnlab.harness.reporting.prose import fill_paragraphs, fill_prose
from experiments.catalogue import FIGURES, HYPOTHESES, find_experiment, list_questions, read_catalogue
from experiments.margins import drop_chance

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
CATALOGUE = read_catalogue()
NUMBERS = {*CATALOGUE.questions, *HYPOTHESES, *FIGURES}


def load(name: str) -> tuple[Experiment, Tables]:
    paths = sorted((REFERENCE / name / "tables").glob("*.parquet"))
    return find_experiment(name), {path.stem: pd.read_parquet(path) for path in paths}


@cache
def answer(name: str) -> Answer:
    return compose_answer(*load(name))


@pytest.mark.parametrize("name", list_questions())
def test_every_claim_is_measured(name: str) -> None:
    experiment, found = answer(name).experiment, answer(name).frame
    assert experiment.question.endswith("?") and experiment.source and {*experiment.answers} <= NUMBERS
    for claim in experiment.claims.values():
        assert claim.text.endswith(".") and claim.rule.unit and claim.rule.reason
        assert {*claim.answers} <= {*experiment.answers}
    assert {*found["claim"]} == {*experiment.claims} and not found["verdict"].eq(NOT_MEASURED).any()


@cache
def answer_all() -> list[Answer]:
    return [answer(name) for name in list_questions()]


def test_nineteen_questions_are_answered() -> None:
    assert list(CATALOGUE.questions) == [f"Q{number}" for number in range(1, 20)]


@pytest.mark.parametrize("number", ["first", *CATALOGUE.questions])
def test_every_sentence_is_true_of_the_reference_and_says_what_is_undecided(number: str) -> None:
    template = CATALOGUE.questions.get(number, CATALOGUE.first)
    sentences = [line for line in template.splitlines() if line and not line.startswith(("# ", "![]("))]
    for sentence in sentences:
        assert fill_paragraphs(sentence, answer_all()), f"another verdict: {sentence}"
        assert ("undecided(" in sentence) == ("undecided" in sentence.replace("undecided(", "")), sentence


@pytest.mark.parametrize("number", CATALOGUE.questions)
def test_every_answer_is_short_and_has_a_figure(number: str) -> None:
    prose = fill_prose(CATALOGUE.questions[number], answer_all())
    experiment, figure = prose.figure
    assert prose.question.endswith("?")
    assert number == "Q19" or figure in find_experiment(experiment).figures  # a script has none
    for limit, is_chosen in ((90, False), (20, True)):  # the line on CIFAR-10 by itself
        chosen = [text for text in prose.paragraphs if text.startswith("*On CIFAR-10*") == is_chosen]
        words = re.findall(r"[A-Za-z][\w'-]*", " ".join(chosen))
        assert len(words) <= limit, f"{len(words)} words"


def test_the_answers_are_short() -> None:
    text = (REFERENCE / "ANSWERS.md").read_text()
    assert text.count("\n") <= 300 and len(text.encode()) <= 30_000


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "quickstart" else pytest.mark.slow) for name in list_questions()]
)
def test_every_figure_is_drawn(name: str, tmp_path: Path) -> None:
    experiment, tables = load(name)
    with style.paper():
        for key, figure in experiment.figures.items():
            assert drawing.save(drawing.draw(key, figure, tables), tmp_path, key).exists()


def test_accuracies_near_chance_are_left_out() -> None:
    rows = [("a", "exact", 0.1), ("a", "exact", 0.4), ("a", "ema", 0.05), ("b", "exact", 0.15), ("b", "ema", 0.9)]
    frame = pd.DataFrame(rows, columns=["panel", "estimator", "accuracy"])
    assert drop_chance(frame, ["panel"])["accuracy"].tolist() == [0.1, 0.4, 0.05]


def test_a_question_that_there_is_not_or_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no question experiments/questions/quikstart.py; did you mean 'quickstart'"):
        find_experiment("quikstart")
    monkeypatch.delattr("experiments.questions.quickstart.EXPERIMENT")
    with pytest.raises(UserError, match=r"quickstart.py has to define EXPERIMENT: .*AttributeError"):
        find_experiment("quickstart")
