"""Questions that fail, their figures, and the page on the literature that rests on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.lab.registry import find_experiment
from bnlab.harness.reporting import drawing
from experiments.literature import write_page
from tests.checks.outcomes import list_measured, load


def test_a_quote_whose_verdict_there_is_not_stops_the_page_on_the_literature() -> None:
    with pytest.raises(UserError, match=r"F1a: .*literature\.md"):
        write_page([])


@pytest.mark.slow  # tests of the report draw those of the quickstart
@pytest.mark.parametrize("name", list_measured())
def test_every_figure_is_drawn(name: str, tmp_path: Path) -> None:
    experiment, tables = load(name)
    for key, figure in experiment.figures.items():
        drawing.write(key, figure, tables, tmp_path)
        assert (tmp_path / f"{key}.png").exists()


def test_a_question_that_there_is_not_or_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"quikstart.* quickstart"):
        find_experiment("quikstart")
    monkeypatch.delattr("experiments.questions.quickstart.EXPERIMENT")
    with pytest.raises(UserError, match=r"quickstart.EXPERIMENT: .*AttributeError"):
        find_experiment("quickstart")
