"""Questions that fail, their figures, and the page on the literature that rests on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.lab.registry import find_question
from bnlab.harness.reporting import drawing
from experiments.literature import write_page
from tests.checks.outcomes import list_measured, load


def test_a_quote_whose_verdict_there_is_not_stops_the_page_on_the_literature() -> None:
    with pytest.raises(UserError, match=r"literature\.md:\d+: .* Running averages cost"):
        write_page([])


@pytest.mark.slow  # tests of the report draw those of the quickstart
@pytest.mark.parametrize("name", list_measured())
def test_every_figure_is_drawn(name: str, tmp_path: Path) -> None:
    question, tables = load(name)
    for key, figure in question.figures.items():
        drawing.write(key, figure, tables[name], tmp_path)
        assert (tmp_path / f"{key}.png").exists()


def test_a_question_that_there_is_not_or_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"quikstart.* quickstart"):
        find_question("quikstart")
    monkeypatch.delattr("experiments.questions.quickstart.QUESTION")
    with pytest.raises(UserError, match=r"quickstart.QUESTION: .*AttributeError"):
        find_question("quickstart")
