"""The committed tables, and what they say of each question: decided once for all checks of a process."""

from __future__ import annotations

from functools import cache

from bnlab.harness.lab.registry import REFERENCE, find_question, list_questions
from bnlab.harness.reporting.outcome import Outcome, decide_outcome
from bnlab.harness.reporting.question import Question, Tables
from bnlab.harness.reporting.tables import load as read
from experiments.literature import decide, list_quoted

ROOT = REFERENCE.parents[1]


def list_measured() -> list[str]:
    """List the questions that have results: claims are committed before numbers, and have none until then."""
    return [name for name in list_questions() if (REFERENCE / name).is_dir()]


def load(name: str) -> tuple[Question, dict[str, Tables]]:
    """Load a question with its committed tables, as `decide_outcome` takes both."""
    return find_question(name), {name: read_tables(name)}


@cache
def read_tables(name: str) -> Tables:
    """Read the committed tables of a sweep."""
    return read(name, REFERENCE)


@cache
def decide_all() -> dict[str, Outcome]:
    """Decide the claims of all questions that have results."""
    return {name: decide_outcome(*load(name)) for name in list_measured()}


@cache
def decide_quoted() -> list[Outcome]:
    """Decide the same, and the claims of the papers that the page on the literature quotes."""
    return [*decide_all().values(), *(decide(name) for name in list_quoted() if name not in decide_all())]
