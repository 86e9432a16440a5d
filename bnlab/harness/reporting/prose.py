"""Answers in prose, written by hand in Markdown: they quote verdicts with their numbers, and say nothing untrue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jinja2
import pandas as pd

from bnlab.harness.reporting.answer import Answer, round_numbers

_IMAGE = re.compile(r"^!\[\]\((\w+)/(\w+)\)$", re.MULTILINE)
_IN_PERCENT = ("share", "of the networks")
_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined)


@dataclass(frozen=True)
class Prose:
    """A question and its answer.

    Attributes:
        question: as one would ask it.
        paragraphs: the answer in Markdown.
        figure: the names of experiment and figure.
    """

    question: str
    paragraphs: list[str]
    figure: tuple[str, str]


class _Untrue(Exception):
    """A quoted verdict is another one, or there is none."""


def fill_prose(template: str, answers: Sequence[Answer]) -> Prose:
    """From a template of three parts, `# Question?`, paragraphs and `![](experiment/figure)`.

    Args:
        template: see `fill_paragraphs`.
        answers: what is quoted.
    """
    heading, _, rest = template.partition("\n")
    image = _IMAGE.search(rest)
    return Prose(
        heading.removeprefix("# "),
        fill_paragraphs(_IMAGE.sub("", rest), answers),
        (image[1], image[2]) if image else ("", ""),
    )


def fill_paragraphs(template: str, answers: Sequence[Answer]) -> list[str]:
    """Paragraphs, between empty lines, of sentences, a line each; one of which a quote is not so is left out.

    A quote is `{{ holds("gap.cost", "batch size 4") }}` or one of `fails` and `undecided`: it is mean and interval of
    the claim `cost` of the experiment `gap`, in the condition that has these words; of several conditions, for which
    further words are given, or none for all, the range of their means and the outer bounds of their intervals. With
    `sign=-1` a gain is quoted as a cost.
    """
    known = {answer.experiment.name: answer for answer in answers}
    paragraphs = []
    for paragraph in template.strip().split("\n\n"):
        sentences = [_fill_sentence(line, known) for line in paragraph.splitlines()]
        paragraphs.append(" ".join(filter(None, sentences)))
    return [paragraph for paragraph in paragraphs if paragraph]


def _fill_sentence(line: str, known: dict[str, Answer]) -> str:
    def quote(verdict: str, claim: str, *conditions: str, sign: int = 1) -> str:
        experiment, _, name = claim.partition(".")
        if experiment not in known:
            raise _Untrue
        cells = known[experiment].frame.query("claim == @name")
        if conditions:
            wanted = [{*words.split(", ")} for words in conditions]
            cells = cells[[any(words <= {*where} for words in wanted) for where in cells["where"]]]
        if {*cells["verdict"]} != {verdict}:
            raise _Untrue
        return _word(cells, known[experiment].experiment.claims[name].rule.unit, sign)

    try:
        quotes = {verdict: partial(quote, verdict) for verdict in ("holds", "fails", "undecided")}
        return _JINJA.from_string(line.strip()).render(quotes)
    except _Untrue:
        return ""


def _word(cells: pd.DataFrame, unit: str, sign: int) -> str:
    """Mean, unit, interval: `5.3 points [3.2, 7.5]`."""
    factor, unit = (100 * sign, "%") if unit in _IN_PERCENT else (sign, f" {re.sub('^points .*', 'points', unit)}")
    numbers = (factor * cells[["mean", "low", "high"]]).clip(*((0, 100) if unit == "%" else ())).itertuples(index=False)
    rounded = sorted((round_numbers(mean, *sorted(bounds)) for mean, *bounds in numbers), key=lambda row: float(row[0]))
    means = dict.fromkeys((rounded[0][0], rounded[-1][0]))
    bounds = sorted((bound for _, *bounds in rounded for bound in bounds), key=float)
    certain = not bounds or len({*bounds, *means}) == 1  # as what is counted
    return f"{' to '.join(means)}{unit}" + ("" if certain else f" [{bounds[0]}, {bounds[-1]}]")
