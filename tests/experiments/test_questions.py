"""Every question: its declarations, and that the reference tables answer and draw it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting import drawing, style
from bnlab.harness.reporting.experiment import NOT_MEASURED, Experiment, Tables, answers
from experiments.catalogue import CATALOGUE, FIGURES
from experiments.questions import find_experiment, list_questions

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
NUMBERS = {*CATALOGUE.questions, *CATALOGUE.hypotheses, *FIGURES}


def load(name: str) -> tuple[Experiment, Tables]:
    paths = sorted((REFERENCE / name / "tables").glob("*.parquet"))
    return find_experiment(name), {path.stem: pd.read_parquet(path) for path in paths}


@pytest.mark.parametrize("name", list_questions())
def test_every_claim_is_measured(name: str) -> None:
    experiment, tables = load(name)
    assert experiment.question.endswith("?") and experiment.source and {*experiment.answers} <= NUMBERS
    for claim in experiment.claims.values():
        assert claim.text.endswith(".") and claim.rule.unit and claim.rule.reason
        assert {*claim.answers} <= {*experiment.answers}
    found = answers(experiment, tables)
    assert {*found["claim"]} == {*experiment.claims} and not found["verdict"].eq(NOT_MEASURED).any()


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
