"""Every question: its declarations, and that the reference tables answer and draw it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting import drawing, style
from bnlab.harness.reporting.answer import Answer, compose_answer
from bnlab.harness.reporting.experiment import NOT_MEASURED, Experiment, Tables
from bnlab.harness.reporting.short import fill_sentence
from experiments.catalogue import CATALOGUE, FIGURES
from experiments.questions import find_experiment, list_questions

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
NUMBERS = {*CATALOGUE.questions, *CATALOGUE.hypotheses, *FIGURES}


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


def test_every_short_answer_is_true_of_the_reference() -> None:
    every = [answer(name) for name in list_questions()]
    filled = {number: fill_sentence(text, every) for number, text in CATALOGUE.short.items()}
    assert filled.keys() == CATALOGUE.questions.keys()
    assert not [number for number, text in filled.items() if not text or "{" in text]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "quickstart" else pytest.mark.slow) for name in list_questions()]
)
def test_every_figure_is_drawn(name: str, tmp_path: Path) -> None:
    experiment, tables = load(name)
    with style.paper():
        for key, figure in experiment.figures.items():
            assert drawing.save(drawing.draw(key, figure, tables), tmp_path, key).exists()


def test_a_question_that_there_is_not_or_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no question experiments/questions/quikstart.py; did you mean 'quickstart'"):
        find_experiment("quikstart")
    monkeypatch.delattr("experiments.questions.quickstart.EXPERIMENT")
    with pytest.raises(UserError, match=r"quickstart.py has to define EXPERIMENT: .*AttributeError"):
        find_experiment("quickstart")
