"""Answers that are written by hand and quote verdicts with their numbers: templates, and how they are filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jinja2
import pandas as pd

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.outcome import Outcome, choose_conditions, count_seeds, find_conditions
from bnlab.harness.reporting.question import POST_HOC
from bnlab.harness.reporting.wording import count_share, round_numbers

_IMAGE = re.compile(r"^!\[\]\((\w+)/(\w+)\)$", re.MULTILINE)
_LINE_STARTS = ("|", "- ")  # of tables and lists, in Markdown
_COUNTED = ("of the networks", "of the seeds")
_IN_PERCENT = ("share", *_COUNTED)
_QUOTED = re.compile(r'(?:holds|fails|undecided|estimated|drawn)\("(\w+)\.')
_VERDICTS = ("holds", "fails", "undecided")
_ESTIMATED = "estimated"
_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined)


@dataclass(frozen=True)
class Prose:
    """A question and its answer.

    Attributes:
        question: as one would ask it.
        paragraphs: the answer in Markdown.
        figure: the names of question and figure; empty without one.
        quoted: the names of the questions that the template quotes, in order.
        seeds: by question, of how many seeds each number is that was quoted.
    """

    question: str
    paragraphs: list[str]
    figure: tuple[str, str]
    quoted: tuple[str, ...]
    seeds: Mapping[str, set[int]] = field(default_factory=dict)


class UntrueQuote(Exception):
    """A quoted verdict is another one, or there is none."""


def fill_prose(template: str, outcomes: Sequence[Outcome]) -> Prose:
    """Fill in a template: `# Question?`, paragraphs, and where there is a figure `![](question/figure)`."""
    heading, _, rest = template.partition("\n")
    question = heading.removeprefix("# ")
    seeds: dict[str, set[int]] = {}
    paragraphs = fill_paragraphs(_IMAGE.sub("", rest), outcomes, seeds)

    image = _IMAGE.search(rest)
    figure = ("", "")
    if image:
        figure = (image[1], image[2])
    quoted = tuple(dict.fromkeys(_QUOTED.findall(rest)))
    return Prose(question, paragraphs, figure, quoted, seeds)


def fill_paragraphs(template: str, outcomes: Sequence[Outcome], seeds: dict[str, set[int]] | None = None) -> list[str]:
    """Fill in paragraphs, between empty lines, of sentences, a line each; a sentence with an untrue quote is left out.

    The rows of a table and the items of a list are sentences too, and keep their lines.

    A quote is `{{ holds("gap.cost", "batch size 4") }}`, or one of `fails` and `undecided`. It gives mean and interval
    of the claim `cost` of the question `gap`, in the condition that has these words. Of several conditions, for which
    further words are given, or none for all, it gives the range of their means and the outer bounds of their intervals.
    With `sign=-1` a gain is quoted as a cost. With `interval=False` the mean stands alone, and a share
    of networks is a count, as `3 of 3`. With `shown=False` the verdict is required and no number is given; only
    `undecided` always gives its estimate.

    `{{ estimated("gap.cost", "batch size 4") }}` gives mean and interval whatever the verdict, for a sentence that
    does not say whether the claim's limit is passed.

    What rests on a claim that is *post hoc* has a mark behind it, POST_HOC.

    `{{ drawn("gap.lost", "batch size 4, step 9", unit="points") }}` gives a point of a figure in the same way, without
    a verdict. All numbers have two significant digits, as one says them; tables have those that the interval bears. To
    `seeds` is added, by question, of how many seeds each number is.
    """
    known = {outcome.question.name: outcome for outcome in outcomes}
    quotes = _Quotes(known, {} if seeds is None else seeds)
    paragraphs = []
    for paragraph in template.strip().split("\n\n"):
        filled = [quotes.fill(line) for line in paragraph.splitlines()]
        sentences = [sentence for sentence in filled if sentence]
        if sentences:
            separator = "\n" if sentences[0].startswith(_LINE_STARTS) else " "
            paragraphs.append(separator.join(sentences))
    return paragraphs


@dataclass(frozen=True)
class _Quotes:
    """What a template calls, see `fill_paragraphs`; UntrueQuote where there is nothing to say.

    Attributes:
        outcomes: by the names of their questions.
        seeds: by question, of how many seeds each number is that was quoted so far.
    """

    outcomes: Mapping[str, Outcome]
    seeds: dict[str, set[int]]

    def fill(self, line: str) -> str:
        """Fill in a sentence; empty with an untrue quote."""
        quotes: dict[str, Callable[..., str]] = {"drawn": self._quote_point}
        for wanted in (*_VERDICTS, _ESTIMATED):
            quotes[wanted] = partial(self._quote_claim, wanted)
        try:
            filled = _JINJA.from_string(line.strip()).render(quotes)
        except UntrueQuote:
            return ""

        marked_once = re.sub(f"{POST_HOC}+", POST_HOC, filled)  # where a sentence rests on several claims
        return " ".join(marked_once.split())

    def _quote_claim(
        self, wanted: str, claim: str, *conditions: str, sign: int = 1, shown: bool = True, interval: bool = True
    ) -> str:
        """Quote a claim that has the wanted verdict, or with any (`estimated`) if it has numbers."""
        outcome, name = self._find(claim)
        cells = find_conditions(outcome.frame, name, conditions)
        if wanted == _ESTIMATED:
            _require_means(cells)
        elif {*cells["verdict"]} != {wanted}:
            raise UntrueQuote
        self._add_seeds(outcome, cells)

        quoted = outcome.question.claims[name]
        mark = POST_HOC if quoted.post_hoc else ""
        if not shown:
            if wanted == "undecided":
                raise ValueError(f"{claim}: what is undecided is quoted with its estimate, without shown=False")
            return mark
        unit = quoted.margin.unit
        if unit in _COUNTED and (wanted == _ESTIMATED or not interval):
            return _say_counts(cells) + mark
        return _say_means(cells, unit, sign, interval) + mark

    def _quote_point(self, figure: str, *conditions: str, unit: str, sign: int = 1, interval: bool = True) -> str:
        outcome, name = self._find(figure)
        try:
            points = outcome.read_figure(name)
        except (UserError, LookupError):  # tables of a sweep without what is drawn
            raise UntrueQuote from None
        cells = _require_means(choose_conditions(points, conditions))
        self._add_seeds(outcome, cells)
        return _say_means(cells, unit, sign, interval)

    def _find(self, reference: str) -> tuple[Outcome, str]:
        """Find the outcome of a claim or a figure, as `gap.cost`, and the name of it there."""
        question, _, name = reference.partition(".")
        # A folder of results may lack this question.
        if question not in self.outcomes:
            raise UntrueQuote
        return self.outcomes[question], name

    def _add_seeds(self, outcome: Outcome, cells: pd.DataFrame) -> None:
        self.seeds.setdefault(outcome.question.name, set()).update(count_seeds(cells))


def _require_means(cells: pd.DataFrame) -> pd.DataFrame:
    """Return cells of which all have a mean; UntrueQuote if one has none, or there are none."""
    if cells.empty or cells["mean"].isna().any():
        raise UntrueQuote
    return cells


def _say_counts(cells: pd.DataFrame) -> str:
    """Say shares of networks as counts, as `2 of 3`, the smallest and the largest."""
    ordered = cells.sort_values("mean")
    counts = [count_share(share, n) for share, n in zip(ordered["mean"], ordered["n"], strict=True)]
    return " to ".join(dict.fromkeys(counts))


def _say_means(cells: pd.DataFrame, unit: str, sign: int, has_interval: bool) -> str:
    """Say mean, unit and interval, as `5.3 points [3.2, 7.5]`; of several cells the range and the outer bounds.

    Shares are said in percent, and of `points gained` only `points`.
    """
    numbers = cells[["mean", "low", "high"]]
    unit_words = ""
    if unit:
        unit_words = " " + re.sub("^points .*", "points", unit)
    if unit in _IN_PERCENT:
        # Student's interval may reach below 0 or above 100%, where no share can be.
        numbers = (100 * numbers).clip(0, 100)
        unit_words = "%"
    numbers = sign * numbers

    means = []
    bounds = []
    for mean, one_bound, other_bound in numbers.itertuples(index=False):
        # With sign=-1 the bounds have changed places.
        low, high = sorted((one_bound, other_bound))
        centre, *ends = round_numbers(mean, low, high, digits=2)
        means.append(centre)
        if has_interval:
            bounds += ends  # none where there is no interval
    # They are kept as words, which are rounded already, but ordered as numbers.
    means.sort(key=float)
    bounds.sort(key=float)

    smallest_and_largest = dict.fromkeys([means[0], means[-1]])
    range_of_means = " to ".join(smallest_and_largest)
    is_certain = len({*bounds, *means}) == 1  # as what is counted
    if not bounds or is_certain:
        return f"{range_of_means}{unit_words}"
    return f"{range_of_means}{unit_words} [{bounds[0]}, {bounds[-1]}]"
