"""Answers in prose, written by hand in Markdown: they quote verdicts with their numbers, and say nothing untrue."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jinja2
import pandas as pd

from bnlab.harness.reporting.experiment import find_conditions
from bnlab.harness.reporting.outcome import Outcome, count_share, round_numbers
from bnlab.harness.reporting.verdicts import NOT_TESTED

_IMAGE = re.compile(r"^!\[\]\((\w+)/(\w+)\)$", re.MULTILINE)
_IN_PERCENT = ("share", "of the networks")
_QUOTES = {"holds": "holds", "fails": "fails", "undecided": "undecided", "counted": NOT_TESTED}
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


def fill_prose(template: str, outcomes: Sequence[Outcome]) -> Prose:
    """Fill in a template of three parts, `# Question?`, paragraphs and `![](experiment/figure)`.

    Args:
        template: see `fill_paragraphs`.
        outcomes: what is quoted.
    """
    heading, _, rest = template.partition("\n")
    question = heading.removeprefix("# ")
    paragraphs = fill_paragraphs(_IMAGE.sub("", rest), outcomes)

    figure = ("", "")
    image = _IMAGE.search(rest)
    if image:
        figure = (image[1], image[2])
    return Prose(question, paragraphs, figure)


def fill_paragraphs(template: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Fill in paragraphs, between empty lines, of sentences, a line each; a sentence with an untrue quote is left out.

    A quote is `{{ holds("gap.cost", "batch size 4") }}`, or one of `fails`, `undecided` and `counted` (not tested). It
    gives mean and interval of the claim `cost` of the experiment `gap`, in the condition that has these words. Of
    several conditions, for which further words are given, or none for all, it gives the range of their means and the
    outer bounds of their intervals; `counted` gives a count, as `3 of 3`. With `sign=-1` a gain is quoted as a cost,
    and with `shown=False` the verdict is required and no number is given.
    """
    known = {outcome.experiment.name: outcome for outcome in outcomes}
    paragraphs = []
    for paragraph in template.strip().split("\n\n"):
        filled = [_fill_sentence(line, known) for line in paragraph.splitlines()]
        sentences = [sentence for sentence in filled if sentence]
        if sentences:
            paragraphs.append(" ".join(sentences))
    return paragraphs


def _fill_sentence(line: str, known: dict[str, Outcome]) -> str:
    def quote(verdict: str, claim: str, *conditions: str, sign: int = 1, shown: bool = True) -> str:
        experiment, _, name = claim.partition(".")
        if experiment not in known:
            raise _Untrue
        cells = find_conditions(known[experiment].frame, name, conditions)
        if {*cells["verdict"]} != {verdict}:
            raise _Untrue
        if not shown:
            return ""
        if verdict == NOT_TESTED:
            return _say_counts(cells)
        return _say_means(cells, known[experiment].experiment.claims[name].margin.unit, sign)

    try:
        quotes = {word: partial(quote, verdict) for word, verdict in _QUOTES.items()}
        return " ".join(_JINJA.from_string(line.strip()).render(quotes).split())
    except _Untrue:
        return ""


def _say_counts(cells: pd.DataFrame) -> str:
    """Write shares as counts, `2 of 3 to 3 of 3`."""
    ordered = cells.sort_values("mean")
    counts = [count_share(share, n) for share, n in zip(ordered["mean"], ordered["n"], strict=True)]
    return " to ".join(dict.fromkeys(counts))


def _say_means(cells: pd.DataFrame, unit: str, sign: int) -> str:
    """Say mean, unit and interval, as `5.3 points [3.2, 7.5]`; of several cells the range and the outer bounds."""
    numbers = sign * cells[["mean", "low", "high"]]
    word = " " + re.sub("^points .*", "points", unit)
    if unit in _IN_PERCENT:
        numbers = (100 * numbers).clip(0, 100)
        word = "%"

    means: list[str] = []
    bounds: list[str] = []
    for mean, *interval in numbers.itertuples(index=False):
        low, high = sorted(interval)
        rounded_mean, *rounded_bounds = say_numbers(mean, low, high)
        means.append(rounded_mean)
        bounds += rounded_bounds
    means.sort(key=float)
    bounds.sort(key=float)

    outer_means = dict.fromkeys([means[0], means[-1]])
    span = " to ".join(outer_means)
    is_certain = not bounds or len({*bounds, *outer_means}) == 1  # as what is counted
    if is_certain:
        return f"{span}{word}"
    return f"{span}{word} [{bounds[0]}, {bounds[-1]}]"


def say_numbers(mean: float, low: float, high: float) -> list[str]:
    """Write mean, low and high as one would say them; the mean alone where there is no interval.

    They have two significant digits, three where the first is 1, and no more than `round_numbers` gives them.

    >>> say_numbers(26.63, 23.1, 30.12), say_numbers(0.0722, 0.0031, 0.1413)
    (['27', '23', '30'], ['0.072', '0.003', '0.141'])
    """
    numbers = (mean, low, high)
    rounded = round_numbers(mean, low, high)  # the mean alone where there is no interval
    return [_shorten(number, given) for number, given in zip(numbers, rounded, strict=False)]


def _shorten(number: float, given: str) -> str:
    """Write a number with two significant digits, three where the first is 1, and no more decimals than `given`."""
    if "e" in given or not math.isfinite(number) or float(given) == 0:
        return given

    mantissa, _, exponent = f"{number:.1e}".partition("e")
    first_digit = mantissa.lstrip("-")[0]
    digits = 3 if first_digit == "1" else 2

    wanted = digits - 1 - int(exponent)
    _, _, given_decimals = given.partition(".")
    decimals = min(wanted, len(given_decimals))
    rounded = round(number, decimals)
    shown = max(0, decimals)
    return f"{rounded:.{shown}f}"
