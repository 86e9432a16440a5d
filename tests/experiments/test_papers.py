"""Facts of papers: what they quote of ours is there, and the scores of those that are measured have rows."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import experiments.papers
from bnlab.harness import load
from bnlab.harness.lab.catalogue import REFERENCE, find_experiment
from bnlab.harness.reporting.frames import OtherThan, score

FOLDER = Path(experiments.papers.__file__).parent
PAPERS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yaml"))}
MEASURED = [name for name, paper in PAPERS.items() if paper["status"] == "measured"]


def list_scores(paper: dict[str, Any]) -> list[dict[str, Any]]:
    """List what is drawn and tested, each with the experiment whose tables it reads."""
    parts = [*paper["figures"].values(), *paper["claims"].values()]
    return [part for part in parts if "score" in part]


def read_value(value: Any) -> Any:
    if isinstance(value, dict):
        return OtherThan(value["not"])
    return tuple(value) if isinstance(value, list) else value


def compute_rows(part: dict[str, Any]) -> Any:
    arguments = {name: read_value(value) for name, value in part["score"].items()}
    module, _, function = arguments.pop("source").rpartition(".")
    source = getattr(import_module(module), function) if module else function
    value = arguments.pop("value")
    by = arguments.pop("by")
    return score(source, value, by, **arguments)(load(part["experiment"], REFERENCE))


@pytest.mark.parametrize("name", MEASURED)
def test_scores_of_measured_papers_have_rows(name: str) -> None:
    assert [part["score"] for part in list_scores(PAPERS[name]) if compute_rows(part).empty] == []


@pytest.mark.parametrize("name", PAPERS)
def test_claims_that_are_quoted_exist(name: str) -> None:
    for claim in PAPERS[name]["claims"].values():
        if "of" in claim:
            experiment, _, key = claim["of"].partition(".")
            assert key in find_experiment(experiment).claims, claim["of"]


@pytest.mark.parametrize("name", PAPERS)
def test_numbers_have_a_place_and_a_source(name: str) -> None:
    assert all(number["where"] and number["source"] for number in PAPERS[name]["printed"])
    for figure in PAPERS[name]["figures"].values():
        assert {*figure["marks"]} <= {number["id"] for number in PAPERS[name]["printed"]}
