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
_LINE_STARTS = ("|", "- ")  # of tables and lists, in Markdown
_IN_PERCENT = ("share", "of the networks")
_QUOTED = re.compile(r'(?:holds|fails|undecided|counted)\("(\w+)\.')
_QUOTES = {"holds": "holds", "fails": "fails", "undecided": "undecided", "counted": NOT_TESTED}
_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined)


@dataclass(frozen=True)
class Prose:
    """A question and its answer.

    Attributes:
        question: as one would ask it.
        paragraphs: the answer in Markdown.
        figure: the names of experiment and figure; empty without one.
        quoted: the names of the experiments that the template quotes.
    """

    question: str
    paragraphs: list[str]
    figure: tuple[str, str]
    quoted: frozenset[str]


class _Untrue(Exception):
    """A quoted verdict is another one, or there is none."""


def fill_prose(template: str, outcomes: Sequence[Outcome]) -> Prose:
    """Fill in a template: `# Question?`, paragraphs, and where there is a figure `![](experiment/figure)`.

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
    quoted = frozenset(_QUOTED.findall(rest))
    return Prose(question, paragraphs, figure, quoted)


def fill_paragraphs(template: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Fill in paragraphs, between empty lines, of sentences, a line each; a sentence with an untrue quote is left out.

    The rows of a table and the items of a list are sentences too, and keep their lines.

    A quote is `{{ holds("gap.cost", "batch size 4") }}`, or one of `fails`, `undecided` and `counted` (not tested). It
    gives mean and interval of the claim `cost` of the experiment `gap`, in the condition that has these words. Of
    several conditions, for which further words are given, or none for all, it gives the range of their means and the
    outer bounds of their intervals; `counted` gives a count, as `3 of 3`. With `sign=-1` a gain is quoted as a cost.
    With `interval=False` the mean stands alone, with two digits, and with `shown=False` the verdict is required and no
    number is given.
    """
    known = {outcome.experiment.name: outcome for outcome in outcomes}
    paragraphs = []
    for paragraph in template.strip().split("\n\n"):
        filled = [_fill_sentence(line, known) for line in paragraph.splitlines()]
        sentences = [sentence for sentence in filled if sentence]
        if sentences:
            separator = "\n" if sentences[0].startswith(_LINE_STARTS) else " "
            paragraphs.append(separator.join(sentences))
    return paragraphs


def _fill_sentence(line: str, known: dict[str, Outcome]) -> str:
    def quote(
        verdict: str, claim: str, *conditions: str, sign: int = 1, shown: bool = True, interval: bool = True
    ) -> str:
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
        unit = known[experiment].experiment.claims[name].margin.unit
        return _say_means(cells, unit, sign) if interval else _say_means_alone(cells, unit, sign)

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
    means: list[str] = []
    bounds: list[str] = []
    for numbers in _scale(cells, unit, sign):
        mean, *interval = say_numbers(*numbers)
        means.append(mean)
        bounds += interval
    bounds.sort(key=float)

    span = f"{_say_range(means)}{_say_unit(unit)}"
    is_certain = not bounds or len({*bounds, *means}) == 1  # as what is counted
    if is_certain:
        return span
    return f"{span} [{bounds[0]}, {bounds[-1]}]"


def _say_means_alone(cells: pd.DataFrame, unit: str, sign: int) -> str:
    """Say mean and unit, as `5.3 points`; of several cells the range of their means."""
    means = [say_mean(*numbers) for numbers in _scale(cells, unit, sign)]
    return f"{_say_range(means)}{_say_unit(unit)}"


def _scale(cells: pd.DataFrame, unit: str, sign: int) -> list[tuple[float, float, float]]:
    """List mean, low and high of each cell as they are said: times `sign`, and shares in percent."""
    numbers = sign * cells[["mean", "low", "high"]]
    if unit in _IN_PERCENT:
        numbers = (100 * numbers).clip(0, 100)

    scaled = []
    for mean, *interval in numbers.itertuples(index=False):
        low, high = sorted(interval)
        scaled.append((mean, low, high))
    return scaled


def _say_unit(unit: str) -> str:
    """Say a claim's unit as it stands behind a number, `points` for `points gained`."""
    if unit in _IN_PERCENT:
        return "%"
    return " " + re.sub("^points .*", "points", unit)


def _say_range(means: Sequence[str]) -> str:
    """Say the smallest and the largest number, as `0.4 to 0.6`, or the one that both are."""
    ordered = sorted(means, key=float)
    outer = dict.fromkeys([ordered[0], ordered[-1]])
    return " to ".join(outer)


def say_numbers(mean: float, low: float, high: float) -> list[str]:
    """Write mean, low and high as one would say them; the mean alone where there is no interval.

    They have two significant digits, three where the first is 1, and no more than `round_numbers` gives them.

    >>> say_numbers(26.63, 23.1, 30.12), say_numbers(0.0722, 0.0031, 0.1413)
    (['27', '23', '30'], ['0.072', '0.003', '0.141'])
    """
    numbers = (mean, low, high)
    rounded = round_numbers(mean, low, high)  # the mean alone where there is no interval
    return [_shorten(number, given) for number, given in zip(numbers, rounded, strict=False)]


def say_mean(mean: float, low: float, high: float) -> str:
    """Write a mean that stands without its interval: two significant digits, and no more than `round_numbers` gives it.

    >>> say_mean(26.63, 23.1, 30.12), say_mean(131.8, 117.0, 148.0), say_mean(0.01, -0.14, 0.16)
    ('27', '130', '0.01')
    """
    given, *_ = round_numbers(mean, low, high)
    return _round(mean, given, digits=2)


def _shorten(number: float, given: str) -> str:
    """Write a number with two significant digits, three where the first is 1, and no more decimals than `given`."""
    first_digit = f"{number:.1e}".lstrip("-")[0]
    return _round(number, given, digits=3 if first_digit == "1" else 2)


def _round(number: float, given: str, digits: int) -> str:
    """Write a number with so many significant digits, and no more decimals than `given`."""
    if "e" in given or not math.isfinite(number) or float(given) == 0:
        return given

    _, _, exponent = f"{number:.1e}".partition("e")
    wanted = digits - 1 - int(exponent)
    _, _, given_decimals = given.partition(".")
    decimals = min(wanted, len(given_decimals))
    rounded = round(number, decimals)
    shown = max(0, decimals)
    return f"{rounded:.{shown}f}"
