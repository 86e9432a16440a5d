"""Answers as a document: Markdown for the repository, one self-contained HTML page to look at."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from bnlab.harness.reporting.answer import READING, VERDICTS, Answer
from bnlab.harness.reporting.short import fill_sentence


@dataclass(frozen=True)
class Catalogue:
    """What is asked, and answers in a sentence.

    Attributes:
        questions, hypotheses: by number, in our words.
        short: by number, a sentence or two that quote the tables, see `short.fill_sentence`.
    """

    questions: Mapping[str, str]
    hypotheses: Mapping[str, str]
    short: Mapping[str, str]


def write_markdown(catalogue: Catalogue, answers: Sequence[Answer]) -> str:
    """ANSWERS.md: what the experiments say on each question; it links to the page of each, beside it."""
    return _render("answers.md", catalogue, answers, {})


def write_experiment(answer: Answer) -> str:
    """The README.md of an experiment's results: claims with all conditions, and figures, as files beside it."""
    return _load_template("experiment.md").render(answer=answer, reading=READING)


def write_html(catalogue: Catalogue, answers: Sequence[Answer], figures: Mapping[tuple[str, str], Path]) -> str:
    """A page that needs no other file; figures are PNGs by the names of experiment and figure, if they exist."""
    images = {key: base64.b64encode(path.read_bytes()).decode() for key, path in figures.items() if path.exists()}
    return _render("page.html", catalogue, answers, images)


def _emphasize(sentence: str) -> str:
    """Markdown in which the sentence's verdicts are bold."""
    return re.sub(f"({'|'.join(map(str.capitalize, VERDICTS))}) —", r"**\1** —", sentence)


def _mark(sentence: str) -> Markup:
    """HTML in which the sentence's verdicts are bold and words in backticks are code."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", _emphasize(str(escape(sentence))))
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", bold))


def _load_template(name: str) -> jinja2.Template:
    is_html = name.endswith(".html")
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(autoescape=is_html, loader=loader, undefined=jinja2.StrictUndefined)
    environment.filters["emphasize"] = _mark if is_html else _emphasize
    return environment.get_template(name)


def _render(template: str, catalogue: Catalogue, answers: Sequence[Answer], images: Mapping[Any, str]) -> str:
    answering = {
        number: [answer for answer in answers if number in answer.experiment.answers]
        for number in (*catalogue.questions, *catalogue.hypotheses)
    }
    return _load_template(template).render(
        questions=catalogue.questions,
        short={number: fill_sentence(text, answers) for number, text in catalogue.short.items()},
        hypotheses=catalogue.hypotheses,
        answers=answers,
        answering=answering.__getitem__,
        images=images,
        reading=READING,
    )
