"""What an experiment says on its question: verdicts, and answers written by hand that quote them with their numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jinja2
import pandas as pd

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.experiment import (
    POST_HOC,
    Claim,
    Experiment,
    Tables,
    choose_conditions,
    decide,
    find_conditions,
    say_where,
    state_headlines,
)
from bnlab.harness.reporting.wording import count_share, describe_networks, list_values, say_mean, say_numbers

READING = (
    "Numbers are means over seeds with 95% intervals. [How a line comes to hold, to fail or to stay undecided]"
    "({rules}), and what *post hoc* (†) means."
)
"""What stands on each page with verdicts; `rules` leads to docs/verdicts.md."""
_IMAGE = re.compile(r"^!\[\]\((\w+)/(\w+)\)$", re.MULTILINE)
_LINE_STARTS = ("|", "- ")  # of tables and lists, in Markdown
_COUNTED = ("of the networks", "of the seeds")
_IN_PERCENT = ("share", *_COUNTED)
_QUOTED = re.compile(r'(?:holds|fails|undecided|estimated|drawn)\("(\w+)\.')
_VERDICTS = ("holds", "fails", "undecided")
_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined)


def _find_no_points(name: str) -> pd.DataFrame:
    raise NoRows(f"figure {name}: there are no tables")


@dataclass(frozen=True)
class Outcome:
    """Outcome of an experiment: what its tables say on its question.

    Attributes:
        experiment: the question; its figures have headlines as titles where these hold.
        frame: verdicts with their numbers, see `experiment.decide`.
        basis: the names of the networks' data, and how many seeds the claims are of, as `glyphs, n = 5 to 15`.
        networks: what was measured, and what was not varied.
        read_figure: gives the points of a figure by its name, with the column `where` as in `frame`; NoRows without
            any.
        data: the names of the networks' data alone.
        notes: what is to be said of rows by other code of the user's than there is now.
    """

    experiment: Experiment
    frame: pd.DataFrame
    basis: str
    networks: str
    read_figure: Callable[[str], pd.DataFrame] = field(default=_find_no_points, repr=False)
    data: str = ""
    notes: Sequence[str] = ()

    def list_claims(self) -> list[tuple[Claim, list[dict[Hashable, Any]]]]:
        """List the claims, each with the rows of `frame` on its conditions."""
        claims = []
        for name, claim in self.experiment.claims.items():
            conditions = self.frame[self.frame["claim"] == name]
            claims.append((claim, conditions.to_dict("records")))
        return claims

    def list_tables(self) -> list[tuple[list[Claim], list[dict[Hashable, Any]]]]:
        """List what is printed as one table: the claims on the same numbers, and their conditions.

        Each condition has `verdicts`, what is said of it for each of these claims.
        """
        tables: dict[tuple[Any, ...], tuple[list[Claim], list[dict[Hashable, Any]]]] = {}
        for claim, conditions in self.list_claims():
            # Claims on one score differ in their margins and verdicts only. The heading has the unit.
            numbers = [(row["condition"], row["number"], row["n"]) for row in conditions]
            claims, rows = tables.setdefault((claim.margin.unit, *numbers), ([], conditions))
            claims.append(claim)
            # The rows of the first of these claims collect the verdicts on all of them.
            for row, condition in zip(rows, conditions, strict=True):
                row.setdefault("verdicts", []).append(condition["said"])
        return list(tables.values())


def decide_outcome(experiment: Experiment, tables: Tables) -> Outcome:
    """Decide the claims of an experiment, and say what was measured."""
    runs = tables["runs"]
    frame = decide(experiment, tables)
    data = list_values(runs["data"])
    # A claim that was not measured, or cannot be scored, has n = 0, which is no number of seeds.
    decided = frame[frame["n"] > 0]
    counts = set[int]()
    for _, cells in decided.groupby("claim"):
        counts |= count_seeds(cells)
    basis = say_basis(data, counts)
    networks = describe_networks(runs)

    # A page quotes many points of one figure, whose score may take long.
    @cache
    def read_figure(name: str) -> pd.DataFrame:
        points = experiment.figures[name].score(tables)
        where = pd.Series([say_where(row) for row in points.to_dict("records")], index=points.index, dtype=object)
        return points.assign(where=where)

    return Outcome(state_headlines(experiment, frame), frame, basis, networks, read_figure, data)


def count_seeds(cells: pd.DataFrame) -> set[int]:
    """Find of how many seeds each row of a claim is; rows of a seed each are together of as many as they name."""
    named = {word for where in cells["where"] for word in where if word.startswith("seed ")}
    return {len(named)} if named else {*cells["n"]}


def say_basis(data: str, counts: Collection[int]) -> str:
    """Name the data, and the smallest and largest of the numbers of seeds, as `glyphs, n = 5 to 15`."""
    # A column of a frame has no truth value.
    if not len(counts):
        return data
    outer = dict.fromkeys([str(min(counts)), str(max(counts))])
    return f"{data}, n = {' to '.join(outer)}"


@dataclass(frozen=True)
class Prose:
    """A question and its answer.

    Attributes:
        question: as one would ask it.
        paragraphs: the answer in Markdown.
        figure: the names of experiment and figure; empty without one.
        quoted: the names of the experiments that the template quotes, in order.
        seeds: by experiment, of how many seeds each number is that was quoted.
    """

    question: str
    paragraphs: list[str]
    figure: tuple[str, str]
    quoted: tuple[str, ...]
    seeds: Mapping[str, set[int]] = field(default_factory=dict)


class UntrueQuote(Exception):
    """A quoted verdict is another one, or there is none."""


def fill_prose(template: str, outcomes: Sequence[Outcome]) -> Prose:
    """Fill in a template: `# Question?`, paragraphs, and where there is a figure `![](experiment/figure)`."""
    heading, _, rest = template.partition("\n")
    question = heading.removeprefix("# ")
    seeds: dict[str, set[int]] = {}
    paragraphs = fill_paragraphs(_IMAGE.sub("", rest), outcomes, after_one=2, seeds=seeds)

    image = _IMAGE.search(rest)
    figure = ("", "")
    if image:
        figure = (image[1], image[2])
    quoted = tuple(dict.fromkeys(_QUOTED.findall(rest)))
    return Prose(question, paragraphs, figure, quoted, seeds)


def fill_paragraphs(
    template: str, outcomes: Sequence[Outcome], after_one: int = 3, seeds: dict[str, set[int]] | None = None
) -> list[str]:
    """Fill in paragraphs, between empty lines, of sentences, a line each; a sentence with an untrue quote is left out.

    The rows of a table and the items of a list are sentences too, and keep their lines.

    A quote is `{{ holds("gap.cost", "batch size 4") }}`, or one of `fails` and `undecided`. It gives mean and interval
    of the claim `cost` of the experiment `gap`, in the condition that has these words. Of several conditions, for which
    further words are given, or none for all, it gives the range of their means and the outer bounds of their intervals.
    With `sign=-1` a gain is quoted as a cost. With `interval=False` the mean stands alone, with two digits, and a share
    of networks is a count, as `3 of 3`. With `shown=False` the verdict is required and no number is given; only
    `undecided` always gives its estimate.

    `{{ estimated("gap.cost", "batch size 4") }}` gives mean and interval whatever the verdict, for a sentence that
    does not say whether the claim's limit is passed.

    What rests on a claim that is *post hoc* has a mark behind it, POST_HOC.

    `{{ drawn("gap.lost", "batch size 4, step 9", unit="points") }}` gives a point of a figure in the same way, without
    a verdict; each number has two digits. Other numbers with intervals have `after_one` of them where the first is 1,
    see `wording.say_numbers`. To `seeds` is added, by experiment, of how many seeds each number is.
    """
    known = {outcome.experiment.name: outcome for outcome in outcomes}
    quotes = _Quotes(known, after_one, {} if seeds is None else seeds)
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
        outcomes: by the names of their experiments.
        after_one: significant digits where the first is 1.
        seeds: by experiment, of how many seeds each number is that was quoted so far.
    """

    outcomes: Mapping[str, Outcome]
    after_one: int
    seeds: dict[str, set[int]]

    def fill(self, line: str) -> str:
        """Fill in a sentence; empty with an untrue quote."""
        quotes: dict[str, Callable[..., str]] = {"drawn": self._quote_point, "estimated": self._quote_estimate}
        for verdict in _VERDICTS:
            quotes[verdict] = partial(self._quote_verdict, verdict)
        try:
            filled = _JINJA.from_string(line.strip()).render(quotes)
        except UntrueQuote:
            return ""

        marked_once = re.sub(f"{POST_HOC}+", POST_HOC, filled)  # where a sentence rests on several claims
        return " ".join(marked_once.split())

    def _quote_verdict(
        self,
        verdict: str,
        claim: str,
        *conditions: str,
        sign: int = 1,
        shown: bool = True,
        interval: bool = True,
    ) -> str:
        outcome, name = self._find(claim)
        cells = find_conditions(outcome.frame, name, conditions)
        if {*cells["verdict"]} != {verdict}:
            raise UntrueQuote
        self._add_seeds(outcome, cells)
        declared = outcome.experiment.claims[name]
        mark = POST_HOC if declared.post_hoc else ""
        if not shown:
            if verdict == "undecided":
                raise ValueError(f"{claim}: what is undecided is quoted with its estimate, without shown=False")
            return mark

        unit = declared.margin.unit
        if unit in _COUNTED and not interval:
            return _say_counts(cells) + mark
        return _say_means(cells, unit, sign, interval, self.after_one) + mark

    def _quote_estimate(self, claim: str, *conditions: str, sign: int = 1, interval: bool = True) -> str:
        outcome, name = self._find(claim)
        cells = _require_means(find_conditions(outcome.frame, name, conditions))
        self._add_seeds(outcome, cells)
        declared = outcome.experiment.claims[name]
        mark = POST_HOC if declared.post_hoc else ""
        unit = declared.margin.unit
        if unit in _COUNTED:
            return _say_counts(cells) + mark
        return _say_means(cells, unit, sign, interval, self.after_one) + mark

    def _quote_point(self, figure: str, *conditions: str, unit: str, sign: int = 1, interval: bool = True) -> str:
        outcome, name = self._find(figure)
        try:
            points = outcome.read_figure(name)
        except (UserError, LookupError):  # tables of a sweep without what is drawn
            raise UntrueQuote from None
        cells = _require_means(choose_conditions(points, conditions))
        self._add_seeds(outcome, cells)
        return _say_means(cells, unit, sign, interval, after_one=2)

    def _find(self, reference: str) -> tuple[Outcome, str]:
        """Find the experiment of a claim or a figure, as `gap.cost`, and the name of it there."""
        experiment, _, name = reference.partition(".")
        # A folder of results may lack this experiment.
        if experiment not in self.outcomes:
            raise UntrueQuote
        return self.outcomes[experiment], name

    def _add_seeds(self, outcome: Outcome, cells: pd.DataFrame) -> None:
        self.seeds.setdefault(outcome.experiment.name, set()).update(count_seeds(cells))


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


def _say_means(cells: pd.DataFrame, unit: str, sign: int, has_interval: bool, after_one: int) -> str:
    """Say mean, unit and interval, as `5.3 points [3.2, 7.5]`; of several cells the range and the outer bounds.

    Shares are said in percent, and of `points gained` only `points`. For `after_one` see `wording.say_numbers`.
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
        if has_interval:
            rounded = say_numbers(mean, low, high, after_one)
            means.append(rounded[0])
            bounds += rounded[1:]  # none where there is no interval
        else:
            means.append(say_mean(mean, low, high))
    # They are kept as words, which are rounded already, but ordered as numbers.
    means.sort(key=float)
    bounds.sort(key=float)

    smallest_and_largest = dict.fromkeys([means[0], means[-1]])
    range_of_means = " to ".join(smallest_and_largest)
    is_certain = len({*bounds, *means}) == 1  # as what is counted
    if not bounds or is_certain:
        return f"{range_of_means}{unit_words}"
    return f"{range_of_means}{unit_words} [{bounds[0]}, {bounds[-1]}]"
