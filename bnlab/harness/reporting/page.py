"""Answers as documents: Markdown for the repository, and one self-contained HTML page to look at."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup

from bnlab.harness.reporting.outcome import READING, Outcome
from bnlab.harness.reporting.overview import Overview
from bnlab.harness.reporting.prose import fill_paragraphs, fill_prose


@dataclass(frozen=True)
class Catalogue:
    """Questions and hypotheses, and how they are answered.

    Attributes:
        questions: by number, the template of question and answer, see `prose.fill_prose`.
        hypotheses: by number, the hypothesis in our words, and the template of what is concluded of it.
        first: what stands before all questions, see `prose.fill_paragraphs`.
        index: links to the questions in the words of those who ask, `[why?](#Q1)`.
        last: what stands behind all questions.
    """

    questions: Mapping[str, str]
    hypotheses: Mapping[str, tuple[str, str]]
    first: str
    index: str
    last: str


@dataclass(frozen=True)
class AddedSeeds:
    """Verdicts of the seeds alone that were added when those of the first seeds were known.

    Attributes:
        text: what they say.
        counts: a row for each experiment: experiment, conditions, decided, alike, undecided, reversed, undone.
    """

    text: str
    counts: pd.DataFrame


def write_answers(catalogue: Catalogue, outcomes: Sequence[Outcome]) -> str:
    """Write ANSWERS.md: what the experiments say on each question; it links to the page of each, beside it.

    Args:
        catalogue: what is asked.
        outcomes: what was measured.
    """
    page = _render("answers.md", catalogue, outcomes, {}, None)
    return _link_headings(page)


def write_hypotheses(catalogue: Catalogue, outcomes: Sequence[Outcome], added_seeds: AddedSeeds | None = None) -> str:
    """Write HYPOTHESES.md: what the experiments say on each hypothesis.

    Args:
        catalogue, outcomes: see `write_answers`.
        added_seeds: what seeds say alone that were added later, if there are any.
    """
    return _render("hypotheses.md", catalogue, outcomes, {}, added_seeds)


def _link_headings(page: str) -> str:
    """Turn links to questions, `(#Q7)`, into links to their headings, `## Q7. …`, as GitHub and Sphinx name them."""
    for heading, number in re.findall(r"^## ((Q\d+)\. .*)$", page, re.MULTILINE):
        kept = re.sub(r"[^\w\s-]", "", heading.lower())
        page = page.replace(f"](#{number})", f"](#{kept.replace(' ', '-')})")
    return page


def write_experiment(outcome: Outcome, devices: str = "") -> str:
    """Write the README.md of an experiment's results: claims with all conditions, and figures, as files beside it.

    Args:
        outcome: what the tables say.
        devices: Markdown on the devices that its networks were trained on; empty where there is nothing to say.
    """
    return _load_template("experiment.md").render(outcome=outcome, reading=READING, devices=devices)


def write_html(
    catalogue: Catalogue,
    outcomes: Sequence[Outcome],
    figures: Mapping[tuple[str, str], Path],
    added_seeds: AddedSeeds | None = None,
) -> str:
    """Write a page that needs no other file.

    Args:
        catalogue, outcomes, added_seeds: see `write_hypotheses`.
        figures: PNGs by the names of experiment and figure; those that do not exist are left out.
    """
    images = {key: _encode(path) for key, path in figures.items() if path.exists()}
    return _render("page.html", catalogue, outcomes, images, added_seeds)


def write_overview(overview: Overview, figures: Mapping[str, Path], folder: Path, command: str) -> str:
    """Write a page on a sweep without a question; it needs no other file.

    Args:
        overview: what the sweep shows.
        figures: PNGs by the names of its figures; those that could not be drawn are left out.
        folder: of the sweep's results.
        command: what continues the sweep; empty if that is not known.
    """
    images = {name: _encode(path) for name, path in figures.items()}
    return _load_template("overview.html").render(overview=overview, images=images, folder=folder, command=command)


def _encode(path: Path) -> str:
    """Encode the bytes of a file as they stand in a page."""
    return base64.b64encode(path.read_bytes()).decode()


def _mark(text: str) -> Markup:
    """Render Markdown that stands in a line; HTML in it is shown as it is written."""
    return Markup(MarkdownIt("commonmark", {"html": False}).renderInline(text))


def _mark_block(text: str) -> Markup:
    """Render a block of Markdown, as a paragraph, a list or a table, see `_mark`."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def _load_template(name: str) -> jinja2.Template:
    """Load a template; in HTML what is filled in is shown as it is written."""
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        autoescape=name.endswith(".html"), loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["mark"] = _mark
    environment.filters["mark_block"] = _mark_block
    return environment.get_template(name)


def _render(
    template: str,
    catalogue: Catalogue,
    outcomes: Sequence[Outcome],
    images: Mapping[Any, str],
    added_seeds: AddedSeeds | None,
) -> str:
    """Fill in a template with all questions, hypotheses and experiments."""
    questions = {number: fill_prose(text, outcomes) for number, text in catalogue.questions.items()}
    hypotheses = {}
    for number, (text, conclusion) in catalogue.hypotheses.items():
        paragraphs = fill_paragraphs(conclusion, outcomes)
        hypotheses[number] = (text, " ".join(paragraphs))

    bearing = {}
    for number in (*questions, *hypotheses):
        quoted = questions[number].quoted if number in questions else frozenset()
        bearing[number] = [
            outcome
            for outcome in outcomes
            if number in outcome.experiment.bears_on or outcome.experiment.name in quoted
        ]

    declared = {}
    for outcome in outcomes:
        for name, figure in outcome.experiment.figures.items():
            declared[outcome.experiment.name, name] = figure

    return _load_template(template).render(
        first=fill_paragraphs(catalogue.first, outcomes),
        index=fill_paragraphs(catalogue.index, outcomes),
        last=fill_paragraphs(catalogue.last, outcomes),
        questions=questions,
        hypotheses=hypotheses,
        outcomes=outcomes,
        bearing=bearing,
        added_seeds=added_seeds,
        figures=declared,
        images=images,
        reading=READING,
    )
