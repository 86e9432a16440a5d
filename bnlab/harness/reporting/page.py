"""Answers as a document: Markdown for the repository, one self-contained HTML page to look at."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from bnlab.harness.reporting.answer import READING, WORDS, Answer
from bnlab.harness.reporting.short import fill_sentence

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Catalogue:
    """What is asked, and answers in a sentence.

    Attributes:
        questions, hypotheses: by number, in our words.
        short: by number, a sentence or two that quote the tables, see `short.fill_sentence`.
    """

    questions: Mapping[str, str]
    hypotheses: Mapping[str, str]
    short: Mapping[str, str] = field(default_factory=dict)


def write_markdown(catalogue: Catalogue, answers: Sequence[Answer]) -> str:
    """ANSWERS.md: figures are linked, as files beside it."""
    return _render("answers.md", catalogue, answers, {})


def write_html(catalogue: Catalogue, answers: Sequence[Answer], figures: Mapping[tuple[str, str], Path]) -> str:
    """A page that needs no other file.

    Args:
        catalogue: the questions.
        answers: of the experiments that have results.
        figures: the PNGs, by the names of experiment and figure; those that do not exist are left out.
    """
    images = {key: base64.b64encode(path.read_bytes()).decode() for key, path in figures.items() if path.exists()}
    return _render("page.html", catalogue, answers, images)


def _emphasize(sentence: str, before: str, after: str) -> str:
    """The sentence with its verdicts set off."""
    words = "|".join(map(re.escape, WORDS.values()))
    return re.sub(f"({words}) —", rf"{before}\1{after} —", sentence)


def _emphasize_markdown(sentence: str) -> str:
    return _emphasize(sentence, "**", "**")


def _emphasize_html(sentence: str) -> Markup:
    # As plain text: what is put into Markup is escaped.
    return Markup(_emphasize(str(_mark_code(sentence)), "<b>", "</b>"))


def _mark_code(text: str) -> Markup:
    """Words in backticks set as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _render(
    template: str, catalogue: Catalogue, answers: Sequence[Answer], images: Mapping[tuple[str, str], str]
) -> str:
    is_html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["emphasize"] = _emphasize_html if is_html else _emphasize_markdown
    environment.filters["mark_code"] = _mark_code
    answering = {
        number: [answer for answer in answers if number in answer.experiment.answers]
        for number in (*catalogue.questions, *catalogue.hypotheses)
    }
    return environment.get_template(template).render(
        questions=catalogue.questions,
        short={number: fill_sentence(text, answers) for number, text in catalogue.short.items()},
        hypotheses=catalogue.hypotheses,
        answers=answers,
        answering=answering.__getitem__,
        images=images,
        reading=READING,
    )
