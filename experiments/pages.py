"""Pages on all questions of a folder of results: a README.md for each, and the answers in words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bnlab.harness.lab.registry import REFERENCE, is_shipped
from bnlab.harness.reporting.outcome import Outcome
from bnlab.harness.reporting.page import Catalogue, write_answers, write_readme

FIGURES = tuple(f"F{number}" for number in range(1, 22))
"""Numbers of the literature's figures that questions may bear on."""
ADDED_SEEDS = (
    "Most experiments of `results/reference` were decided with five seeds; many were then given ten more, because "
    "conditions of theirs were undecided. A second look makes it likelier that something holds by chance, so here is "
    "what the ten new seeds say alone of the 50 conditions that five seeds did not decide and fifteen do: 44 likewise, "
    "6 they leave undecided, none they reverse. Of what five seeds had decided, nothing is undecided with fifteen. "
    "Each experiment's page says how many of these are its own."
)
"""A paragraph before all hypotheses."""


def write_pages(outcomes: Sequence[Outcome], results: Path) -> None:
    """Write the README.md of each question, and, unless all are the user's own, the pages of answers."""
    pages = {f"{outcome.question.name}/README.md": write_readme(outcome) for outcome in outcomes}
    if any(is_shipped(outcome.question.name) for outcome in outcomes):
        pages |= write_answers(read_catalogue(), outcomes)
    for name, page in pages.items():
        path = results / name
        path.write_text(adapt_links(page, results, name), encoding="utf-8")
        print(path)


def adapt_links(page: str, results: Path, name: str) -> str:
    """Let links out of the folder of results, which are written as from results/reference, lead from where it is.

    Args:
        page: in Markdown.
        results: the folder of results.
        name: of the page's file in it, such as `ground/README.md`.
    """
    folder = Path(name).parent

    def adapt(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(REFERENCE / folder / match[1]))
        if target.is_relative_to(REFERENCE):  # to a file beside it, which the other folder has as well
            return match[0]
        return "](" + os.path.relpath(target, results / folder)

    # The match ends before the anchor of a heading, which stays as it is.
    return re.sub(r"\]\((\.\./[^)#]+)", adapt, page)


def read_catalogue() -> Catalogue:
    """Read the questions Q1, Q2, … with their answers, the hypotheses with conclusions, and what stands around them."""
    folder = Path(__file__).with_name("answers")
    pages = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    # The other five files are popped, so that only questions are left.
    first = pages.pop("first")
    situations = pages.pop("situations")
    index = {}
    for part in pages.pop("index").split("## ")[1:]:
        topic, _, entries = part.partition("\n")
        index[topic] = [entry.removeprefix("- ") for entry in entries.strip().splitlines()]
    last = pages.pop("last")

    hypotheses = {}
    for part in pages.pop("hypotheses").strip().split("\n\n"):
        heading, _, conclusion = part.partition("\n")
        number, _, hypothesis = heading.partition(". ")
        hypotheses[number] = (hypothesis, conclusion)

    # As words, Q10 would come before Q2.
    numbers = sorted(pages, key=lambda number: int(number[1:]))
    questions = {number: pages[number] for number in numbers}
    return Catalogue(questions, hypotheses, first, situations, index, last, ADDED_SEEDS)
