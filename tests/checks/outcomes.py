"""The committed tables, and what they say of each question: decided once for all checks of a process."""

from __future__ import annotations

from functools import cache

import pandas as pd

from bnlab.harness.lab.registry import REFERENCE, find_experiment, list_questions
from bnlab.harness.reporting.experiment import Experiment, Tables
from bnlab.harness.reporting.outcome import Outcome, decide_outcome
from experiments.literature import decide, list_findings

ROOT = REFERENCE.parents[1]


def list_measured() -> list[str]:
    """List the questions that have results: claims are committed before numbers, and have none until then."""
    return [name for name in list_questions() if (REFERENCE / name).is_dir()]


def load(name: str) -> tuple[Experiment, Tables]:
    """Load a question with its committed tables."""
    paths = sorted((REFERENCE / name / "tables").glob("*.parquet"))
    return find_experiment(name), {path.stem: pd.read_parquet(path) for path in paths}


@cache
def decide_all() -> dict[str, Outcome]:
    """Decide the claims of all questions that have results."""
    return {name: decide_outcome(*load(name)) for name in list_measured()}


@cache
def decide_quoted() -> list[Outcome]:
    """Decide the same, and the claims of the papers that the page on the literature quotes."""
    names = {name for finding in list_findings() for _, name, _ in finding.list_quotes()}
    return [*decide_all().values(), *(decide(name) for name in sorted(names - {*decide_all()}))]
