"""Answers as documents: Markdown for the repository, and the same as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup

from bnlab.common.pages import fill_in
from bnlab.harness.reporting.outcome import READING, Outcome, fill_paragraphs, fill_prose, say_basis
from bnlab.harness.reporting.overview import Overview

# HTML in Markdown is escaped and shown as text: names of sweeps and docstrings are written by users.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


@dataclass(frozen=True)
class Catalogue:
    """Questions and hypotheses, and how they are answered.

    Attributes:
        questions: by number, the template of question and answer, see `outcome.fill_prose`.
        hypotheses: by number, the hypothesis in our words, and the template of what is concluded of it.
        first: what stands before all questions, see `outcome.fill_paragraphs`.
        situations: what to do in which situation, a table behind the index.
        index: by topic, links to its questions in the words of those who ask, `- [why?](#Q1)`.
        last: what stands behind all questions.
    """

    questions: Mapping[str, str]
    hypotheses: Mapping[str, tuple[str, str]]
    first: str
    situations: str
    index: Mapping[str, str]
    last: str


@dataclass(frozen=True)
class Topic:
    """Questions that stand together.

    Attributes:
        text: Markdown, links to them in the words of those who ask.
        numbers: of those that are answered there, in order.
    """

    text: str
    numbers: Sequence[str]


@dataclass(frozen=True)
class AddedSeeds:
    """Verdicts of the seeds alone that were added when those of the first seeds were known.

    Attributes:
        text: what they say.
        counts: a row for each experiment: experiment, conditions, decided, alike, undecided, reversed, undone.
    """

    text: str
    counts: pd.DataFrame


def write_experiment(outcome: Outcome, devices: str = "") -> str:
    """Write the README.md of an experiment's results, with Markdown on the devices that have trained its networks."""
    # F1, F2, ... are findings of the literature, which have a page of their own.
    numbers = [number for number in outcome.experiment.bears_on if not number.startswith("F")]
    reading = READING.format(rules="../../../docs/verdicts.md")
    return render("experiment.md", outcome=outcome, numbers=numbers, reading=reading, devices=devices)


def write_question(outcome: Outcome, folder: Path) -> str:
    """Write the same as one HTML page; the folder has the figures."""
    return write_html(outcome.experiment.name, write_experiment(outcome), folder)


def write_answers(
    catalogue: Catalogue, outcomes: Sequence[Outcome], added_seeds: AddedSeeds | None = None
) -> dict[str, str]:
    """Write what the experiments say on each question and each hypothesis.

    Returns:
        ANSWERS.md and HYPOTHESES.md, which link to the page of each experiment beside them.
    """
    questions = {number: fill_prose(text, outcomes) for number, text in catalogue.questions.items()}
    hypotheses = {}
    for number, (text, conclusion) in catalogue.hypotheses.items():
        paragraphs = fill_paragraphs(conclusion, outcomes)
        hypotheses[number] = (text, " ".join(paragraphs))

    bearing: dict[str, list[Outcome]] = {number: [] for number in (*questions, *hypotheses)}
    figures = {}
    for outcome in outcomes:
        experiment = outcome.experiment
        for number, bearing_on_it in bearing.items():
            if number in experiment.bears_on:
                bearing_on_it.append(outcome)
        for name, figure in experiment.figures.items():
            figures[experiment.name, name] = figure

    known = {outcome.experiment.name: outcome for outcome in outcomes}
    # A folder of results may lack experiments that an answer quotes.
    quoted = {}
    bases = {}
    for number, prose in questions.items():
        names = [name for name in prose.quoted if name in known]
        quoted[number] = [known[name] for name in names]
        for name in names:
            bases[number, name] = say_basis(known[name].data, prose.seeds.get(name, ()))
    answers = render(
        "answers.md",
        first=fill_paragraphs(catalogue.first, outcomes, after_one=2),
        situations=fill_paragraphs(catalogue.situations, outcomes, after_one=2),
        topics=_list_topics(catalogue.index),
        last=fill_paragraphs(catalogue.last, outcomes),
        questions=questions,
        quoted=quoted,
        bases=bases,
        bearing=bearing,
        figures=figures,
    )
    reading = READING.format(rules="../../docs/verdicts.md")
    page = render("hypotheses.md", hypotheses=hypotheses, bearing=bearing, added_seeds=added_seeds, reading=reading)
    return {"ANSWERS.md": _link_headings(answers), "HYPOTHESES.md": page}


def _list_topics(index: Mapping[str, str]) -> dict[str, Topic]:
    """List the topics with the questions that they answer: those they link to and no later topic does."""
    linked = {topic: re.findall(r"\]\(#(Q\d+)\)", text) for topic, text in index.items()}
    # Later topics overwrite earlier ones, so that a question that several of them link to is answered once.
    answered_in = {number: topic for topic, numbers in linked.items() for number in numbers}

    topics = {}
    for topic, text in index.items():
        numbers = [number for number in linked[topic] if answered_in[number] == topic]
        topics[topic] = Topic(text, numbers)
    return topics


def write_overview(overview: Overview, folder: Path, commands: Sequence[str]) -> str:
    """Write a page on a sweep without a question: its results lie in the folder, and the commands have made them."""
    page = render("overview.md", overview=overview, folder=folder, commands=commands)
    return write_html(folder.name, page, folder)


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


def _convert(page: str, folder: Path) -> Markup:
    """Convert Markdown to HTML that holds the images of its folder, and whose links stay inside of it."""

    def embed(match: re.Match[str]) -> str:
        path = folder / match[1]
        if not path.exists():
            return ""
        image = base64.b64encode(path.read_bytes()).decode()
        return f'<img onclick="enlarge(this)" src="data:image/png;base64,{image}" alt="{match[2]}">'

    html = _MARKDOWN.render(page)
    html = re.sub(r'<img src="([^"]*)" alt="([^"]*)" />', embed, html)
    # The page has to work without any other file: a link to one beside it becomes plain words.
    html = re.sub(r'<a href="\.\./[^"]*">(.*?)</a>', r"\1", html)
    # page.html colours a verdict by its first word: `not measured` and `cannot be scored` have more.
    html = re.sub(r"<td>(holds|fails|undecided|one seed|not|cannot)\b", r'<td class="\1">\1', html)
    # A table that is wider than the screen scrolls by itself, and the page does not.
    return Markup(html.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>"))


def render(name: str, **values: object) -> str:
    """Fill in one of the reports' templates."""
    return fill_in(Path(__file__).with_name("templates") / name, **values)
