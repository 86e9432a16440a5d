"""Answers as documents: Markdown for the repository, and the same as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from bnlab.common.pages import fill_in
from bnlab.harness.reporting.outcome import READING, Outcome, say_basis
from bnlab.harness.reporting.quotes import fill_paragraphs, fill_prose

# HTML in Markdown is escaped and shown as text: names of sweeps and docstrings are written by users.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_COLOURED = ("holds", "fails", "undecided", "one", "not", "cannot")


@dataclass(frozen=True)
class Catalogue:
    """Questions and hypotheses, and how they are answered.

    Attributes:
        questions: by number, the template of question and answer, see `quotes.fill_prose`.
        hypotheses: by number, the hypothesis in our words, and the template of what is concluded of it.
        first: what stands before all questions, see `quotes.fill_paragraphs`.
        situations: what to do in which situation, a table behind the index.
        index: by topic, the numbers of its questions in order, and lines in Markdown that lead elsewhere.
        last: what stands behind all questions.
        remark: what stands before all hypotheses.
    """

    questions: Mapping[str, str]
    hypotheses: Mapping[str, tuple[str, str]]
    first: str
    situations: str
    index: Mapping[str, Sequence[str]]
    last: str
    remark: str = ""


def write_readme(outcome: Outcome) -> str:
    """Write the README.md of an experiment's results."""
    # F1, F2, ... are findings of the literature, which have a page of their own.
    numbers = [number for number in outcome.question.bears_on if not number.startswith("F")]
    reading = READING.format(rules="../../../docs/verdicts.md")
    return render("experiment.md", outcome=outcome, numbers=numbers, reading=reading)


def write_question(outcome: Outcome, folder: Path) -> str:
    """Write the same as one HTML page; the folder has the figures."""
    return write_html(outcome.question.name, write_readme(outcome), folder)


def write_paper(outcome: Outcome, questions: Collection[str]) -> str:
    """Write the README.md of a paper that is redrawn; `questions` are those that have pages of their own."""
    missing = [name for name in outcome.question.list_reads() if name not in outcome.bases]
    reading = READING.format(rules="../../../../docs/verdicts.md")
    return render("paper.md", outcome=outcome, questions=questions, missing=missing, reading=reading)


def write_answers(catalogue: Catalogue, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Write what the experiments say on each question and each hypothesis.

    Returns:
        ANSWERS.md and HYPOTHESES.md, which link to the page of each experiment beside them.
    """
    questions = {number: fill_prose(text, outcomes) for number, text in catalogue.questions.items()}
    hypotheses = {}
    for number, (text, conclusion) in catalogue.hypotheses.items():
        hypotheses[number] = (text, " ".join(fill_paragraphs(conclusion, outcomes)))

    bearing = {}
    for number in (*questions, *hypotheses):
        bearing[number] = [outcome.question.name for outcome in outcomes if number in outcome.question.bears_on]
    answers = render(
        "answers.md",
        first=fill_paragraphs(catalogue.first, outcomes),
        situations=fill_paragraphs(catalogue.situations, outcomes),
        last=fill_paragraphs(catalogue.last, outcomes),
        index=catalogue.index,
        questions=questions,
        bearing=bearing,
        # A folder of results may lack experiments that an answer quotes.
        known={outcome.question.name: outcome for outcome in outcomes},
        say_basis=say_basis,
    )
    reading = READING.format(rules="../../docs/verdicts.md")
    page = render("hypotheses.md", hypotheses=hypotheses, bearing=bearing, reading=reading, remark=catalogue.remark)
    return {"ANSWERS.md": _link_headings(answers), "HYPOTHESES.md": page}


def write_sweep(outcome: Outcome, folder: Path) -> str:
    """Write the page of any sweep, whose results lie in the folder."""
    return write_html(folder.name, render("sweep.md", outcome=outcome, folder=folder), folder)


def write_html(name: str, page: str, folder: Path) -> str:
    """Write a page of Markdown as one HTML page, with the figures of its folder."""
    return render("page.html", title=f"bnlab: {name}", html=_convert(page, folder))


def _link_headings(page: str) -> str:
    """Turn links to questions, `(#Q7)`, into links to their headings, `### Q7. …`, as GitHub and Sphinx name them."""
    for heading, number in re.findall(r"^### ((Q\d+)\. .*)$", page, re.MULTILINE):
        kept = re.sub(r"[^\w\s-]", "", heading.lower())
        # The closing bracket keeps a link to Q1 apart from one to Q12.
        page = page.replace(f"](#{number})", f"](#{kept.replace(' ', '-')})")
    return page


def _convert(page: str, folder: Path) -> str:
    """Convert Markdown to HTML that holds the images of its folder, and whose links stay inside of it."""
    tokens = _MARKDOWN.parse(page)
    for token, following in itertools.pairwise(tokens):
        # page.html colours a verdict by its first word: `not measured` and `cannot be scored` have more.
        word, _, _ = following.content.partition(" ")
        if token.type == "td_open" and word in _COLOURED:
            token.attrSet("class", word)
        for part in token.children or ():
            target = str(part.attrs.get("src") or part.attrs.get("href", ""))
            if part.type == "image" and (folder / target).exists():
                image = base64.b64encode((folder / target).read_bytes()).decode()
                part.attrSet("src", f"data:image/png;base64,{image}")
            # The page has to work without any other file: a link to one beside it becomes plain words.
            if part.type == "link_open" and target.startswith("../"):
                del part.attrs["href"]
    return _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})


def render(name: str, **values: object) -> str:
    """Fill in one of the reports' templates."""
    return fill_in(Path(__file__).with_name("templates") / name, **values)
