"""What the tables say on a question: its claims with their verdicts, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.errors import NoRows, where_raised
from bnlab.harness.reporting.frames import Tables, put_in_order
from bnlab.harness.reporting.means import MEASURES, NUMBERS
from bnlab.harness.reporting.question import POST_HOC, Claim, Question
from bnlab.harness.reporting.verdicts import CANNOT_BE_SCORED, NOT_MEASURED, NOT_TESTED, judge
from bnlab.harness.reporting.wording import (
    count_share,
    describe_networks,
    estimator_label,
    format_number,
    list_values,
    name_value,
)

READING = (
    "Numbers are means over seeds with 95% intervals. The rules say [how verdicts are decided]({rules}), and what "
    "*post hoc* (†) means."
)
"""What stands on each page with verdicts; `rules` leads to docs/verdicts.md."""


def _find_no_points(name: str) -> pd.DataFrame:
    raise NoRows(f"figure {name}: there are no tables")


@dataclass(frozen=True)
class Outcome:
    """What the tables say on a question.

    Attributes:
        question: the question; its figures have headlines as titles where these hold.
        frame: verdicts with their numbers, see `decide`.
        networks: what was measured, and what was not varied.
        bases: by the name of a sweep that it reads, the names of the networks' data, and how many seeds the claims are
            of, as `glyphs, n = 5 to 15`.
        data: the names of the networks' data alone.
        read_figure: gives the points of a figure by its name, with the column `where` as in `frame`; NoRows without
            any.
        notes: what is to be said of rows by other code of the user's than there is now.
        means: of any sweep, the means by condition in words: under an empty name, and those of the user's own tables by
            their names; None: the question has claims instead.
    """

    question: Question
    frame: pd.DataFrame
    networks: str = ""
    bases: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    read_figure: Callable[[str], pd.DataFrame] = field(default=_find_no_points, repr=False)
    notes: Sequence[str] = ()
    means: Mapping[str, pd.DataFrame] | None = None

    @property
    def basis(self) -> str:
        """What all of its sweeps are of, each named once."""
        return "; ".join(dict.fromkeys(self.bases.values()))

    def list_claims(self) -> list[tuple[Claim, list[dict[Hashable, Any]]]]:
        """List the claims, each with the rows of `frame` on its conditions."""
        claims = []
        for name, claim in self.question.claims.items():
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


def decide_outcome(question: Question, tables: Mapping[str, Tables]) -> Outcome:
    """Decide the claims of a question, and say what was measured.

    Args:
        question: what is asked.
        tables: by the name of each sweep that it reads, see `Question.list_reads`, those tables. Of a sweep that is not
            among them, as of one that was not measured, no claim is decided.
    """
    frame = decide(question, tables)
    data = {name: list_values(of_sweep["runs"]["data"]) for name, of_sweep in tables.items()}
    bases = {}
    for name in tables:
        claims = [key for key, claim in question.claims.items() if (claim.reads or question.name) == name]
        # A claim that was not measured, or cannot be scored, has n = 0, which is no number of seeds.
        decided = frame[frame["claim"].isin(claims) & (frame["n"] > 0)]
        counts = set[int]()
        for _, cells in decided.groupby("claim"):
            counts |= count_seeds(cells)
        bases[name] = say_basis(data[name], counts)
    networks = describe_networks(tables[question.name]["runs"]) if question.name in tables else ""

    # A page quotes many points of one figure, whose score may take long.
    @cache
    def read_figure(name: str) -> pd.DataFrame:
        figure = question.figures[name]
        points = figure.score(tables[figure.reads or question.name])
        where = pd.Series([say_where(row) for row in points.to_dict("records")], index=points.index, dtype=object)
        return points.assign(where=where)

    named = state_headlines(question, frame)
    return Outcome(named, frame, networks, bases, data.get(question.name, ""), read_figure)


def decide(question: Question, tables: Mapping[str, Tables]) -> pd.DataFrame:
    """Decide each claim from the tables of the sweep that it reads.

    Returns:
        A row for each condition of each claim, with the columns experiment (the question's name), claim, condition,
        where (the condition as a tuple of words, in the same order in all rows of a claim), mean, low, high (the 95%
        interval of the condition alone), n, verdict, note (see `judge`), and in words number (mean and interval, or a
        count) and said (verdict and note). A claim without rows has one without numbers, *not measured*; so has one
        whose score raises, *cannot be scored*, noting the line of the question's code and the reason.
    """
    decided = []
    for name, claim in question.claims.items():
        reads = claim.reads or question.name
        if reads not in tables:
            continue
        for row in _decide_claim(claim, tables[reads]):
            decided.append({"experiment": question.name, "claim": name, **row})

    columns = ["experiment", "claim", "condition", "where", *NUMBERS, "verdict", "note", "number", "said"]
    return pd.DataFrame(decided, columns=columns)


def _decide_claim(claim: Claim, tables: Tables) -> list[dict[str, Any]]:
    """Decide the conditions of a claim, with what is said of each."""
    try:
        judged = _judge_conditions(claim, tables)
        conditions = [row for row in judged if _matches_any(row["where"], claim.conditions)]
        if not conditions:
            conditions = [_leave_open(" or ".join(claim.conditions), NOT_MEASURED)]
    except NoRows:
        conditions = [_leave_open("no rows", NOT_MEASURED)]
    except (Exception, SystemExit) as error:  # the code of a question may raise either
        conditions = [_leave_open("all conditions", CANNOT_BE_SCORED, where_raised(error))]

    decided = []
    for row in conditions:
        verdict = row["verdict"]
        number = ""
        if verdict == NOT_TESTED and row["share"]:
            number = count_share(row["mean"], row["n"])
        elif row["n"]:
            number = format_number(row["mean"], row["low"], row["high"])
        said = verdict
        if row["note"]:
            said = f"{verdict} ({row['note']})"
        condition = ", ".join(word for word in row["where"] if word)
        decided.append({**row, "condition": condition, "number": number, "said": said})
    return decided


def _leave_open(condition: str, verdict: str, note: str = "") -> dict[str, Any]:
    """Make the one row of a claim that has no numbers."""
    numbers = {"mean": np.nan, "low": np.nan, "high": np.nan, "n": 0, "share": False}
    return {"where": (condition,), **numbers, "verdict": verdict, "note": note}


def _judge_conditions(claim: Claim, tables: Tables) -> list[dict[str, Any]]:
    """Judge each condition of a claim: panels in order of appearance, within them the other conditions in theirs."""
    frame = claim.score(tables)
    if frame.empty:
        raise NoRows("no rows")

    others = [str(column) for column in frame if column not in (*MEASURES, "panel")]
    ordered = frame
    if others:
        ordered = frame.sort_values(others, kind="stable")
    if "panel" in frame:
        panels = frame["panel"].unique()
        # This sort is stable, so that the order of the other conditions stays within a panel.
        ordered = put_in_order(ordered, "panel", panels)

    judged = judge(ordered, claim.margin, claim.lines).to_dict("records")
    conditions = []
    for row, judgement in zip(ordered.to_dict("records"), judged, strict=True):
        numbers = {key: row[key] for key in (*NUMBERS, "share")}
        words = {str(key): value for key, value in judgement.items()}
        conditions.append({"where": say_where(row), **numbers, **words})
    return conditions


def say_where(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """Say what tells a row of a score from the others; empty where it has no value."""
    words = []
    for key, value in row.items():
        # The momentum stands in the name of the estimator.
        if key in MEASURES or (key == "momentum" and "estimator" in row):
            continue
        # An empty word keeps the others in their places, which are the same in all rows of a claim.
        if pd.isna(value) or value == "":
            words.append("")
        elif key == "estimator":
            words.append(estimator_label(value, row.get("momentum", math.nan)))
        else:
            words.append(name_value(key, value))
    return tuple(words)


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


def state_headlines(question: Question, verdicts: pd.DataFrame) -> Question:
    """Give each figure whose headline holds, all claims in all conditions, that as its title; see `decide`."""
    figures = dict(question.figures)
    for name, figure in figures.items():
        headline = figure.headline
        if headline is None:
            continue
        has_held = _have_verdict(verdicts, headline.claims, "holds")
        has_failed = _have_verdict(verdicts, headline.fails, "fails")
        if has_held and has_failed:
            quoted = [question.claims[claim] for claim in (*headline.claims, *headline.fails)]
            mark = POST_HOC if any(claim.post_hoc for claim in quoted) else ""
            figures[name] = replace(figure, title=headline.text + mark)
    return replace(question, figures=figures)


def _have_verdict(verdicts: pd.DataFrame, claims: Mapping[str, Sequence[str]], verdict: str) -> bool:
    """Find out if all of these claims have a verdict in all of their conditions."""
    for claim, conditions in claims.items():
        cells = find_conditions(verdicts, claim, conditions)
        # A claim or condition that is missing has no verdict at all, and does not let a headline stand.
        if {*cells["verdict"]} != {verdict}:
            return False
    return True


def find_conditions(verdicts: pd.DataFrame, claim: str, conditions: Sequence[str]) -> pd.DataFrame:
    """Find the verdicts on a claim in the conditions that have all words of one of `conditions`; in all without any."""
    is_of_claim = verdicts["claim"] == claim
    return choose_conditions(verdicts[is_of_claim], conditions)


def choose_conditions(cells: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Choose the rows whose column `where` has all words of one of `conditions`; all rows without any.

    Where a column's value is itself several words, as `one-cycle, at the end`, a condition names all of them or none.
    """
    is_chosen = cells["where"].map(lambda where: _matches_any(where, conditions))
    # Without rows `map` returns objects, by which pandas would select columns.
    return cells[is_chosen.astype(bool)]


def _matches_any(where: tuple[str, ...], conditions: Sequence[str]) -> bool:
    """Return whether a row's values match one of the conditions; without any condition every row does."""
    return not conditions or any(_matches(where, {*words.split(", ")}) for words in conditions)


def _matches(where: tuple[str, ...], words: set[str]) -> bool:
    """Return whether each of the words stands in a value of the row, and these values have no other words.

    >>> _matches(("16", "one-cycle, at the end"), {"16", "one-cycle", "at the end"})
    True
    >>> _matches(("16", "one-cycle, at the end"), {"16", "one-cycle"})
    False
    """
    named: set[str] = set()
    for value in where:
        parts = {*value.split(", ")}
        if parts <= words:
            named |= parts
    return named == words
