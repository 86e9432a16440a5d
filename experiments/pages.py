"""Pages on all questions of a folder of results: a README.md for each, and the answers in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab.harness.reporting.outcome import Outcome
from bnlab.harness.reporting.page import Catalogue, write_answers, write_experiment
from bnlab.harness.reporting.tables import load
from bnlab.lab.catalogue import is_shipped
from bnlab.lab.folders import REFERENCE
from experiments.devices import describe_devices
from experiments.holdout import describe_added_seeds

FIGURES = tuple(f"F{number}" for number in range(1, 22))
"""Numbers of the literature's figures that questions may bear on."""


def write_pages(outcomes: Sequence[Outcome], results: Path) -> None:
    """Write the README.md of each question, and, unless all are the user's own, the pages of answers."""
    is_reference = results.resolve() == REFERENCE
    pages = {}
    for outcome in outcomes:
        name = outcome.experiment.name
        devices = describe_devices(load(name, results)["runs"]) if is_reference else ""
        pages[f"{name}/README.md"] = write_experiment(outcome, devices)

    if any(is_shipped(outcome.experiment.name) for outcome in outcomes):
        added_seeds = describe_added_seeds(outcomes, results) if is_reference else None
        pages |= write_answers(read_catalogue(), outcomes, results, added_seeds)
    for name, page in pages.items():
        path = results / name
        path.write_text(page, encoding="utf-8")
        print(path)


def read_catalogue() -> Catalogue:
    """Read the questions Q1, Q2, … with their answers, the hypotheses with conclusions, and what stands around them."""
    folder = Path(__file__).with_name("answers")
    pages = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    first = pages.pop("first")
    index = pages.pop("index")
    last = pages.pop("last")
    hypotheses = _read_hypotheses(pages.pop("hypotheses"))

    numbers = sorted(pages, key=lambda number: int(number[1:]))
    questions = {number: pages[number] for number in numbers}
    return Catalogue(questions, hypotheses, first, index, last)


def _read_hypotheses(text: str) -> dict[str, tuple[str, str]]:
    """Read hypotheses by their numbers, with the lines below them; empty lines are between them."""
    hypotheses = {}
    for part in text.strip().split("\n\n"):
        heading, _, conclusion = part.partition("\n")
        number, _, hypothesis = heading.partition(". ")
        hypotheses[number] = (hypothesis, conclusion)
    return hypotheses
