"""An experiment as a page of declarations: figures, and claims with the margins by which they are decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.errors import NoRows, where_raised
from bnlab.harness.reporting.frames import Score, Tables, put_in_order
from bnlab.harness.reporting.means import MEASURES, NUMBERS
from bnlab.harness.reporting.plots import Plot
from bnlab.harness.reporting.verdicts import (
    CANNOT_BE_SCORED,
    NOT_MEASURED,
    NOT_TESTED,
    Lines,
    Margin,
    above,
    below,
    judge,
    within,
)
from bnlab.harness.reporting.wording import count_share, estimator_label, format_number, name_value

__all__ = ["Claim", "Experiment", "Figure", "Margin", "Score", "Tables", "above", "below", "decide", "judge", "within"]

POST_HOC = "†"
"""A mark behind what is quoted from a claim that was asked, narrowed, extended or restored when numbers were known."""


@dataclass(frozen=True)
class Headline:
    """What a figure shows if claims hold, or fail.

    Attributes:
        text: a sentence without a full stop, the figure's title then.
        claims: by the name of a claim of the experiment, the conditions in which it has to hold, in words as in its
            table (`batch size 4, layer 2`: all of these words); none: in all.
        fails: likewise those that have to fail, so that the opposite holds.
    """

    text: str
    claims: Mapping[str, Sequence[str]]
    fails: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """A stretch of the horizontal axis that a paper names, grey in all panels of ours; a line where its ends agree."""

    low: float
    high: float
    words: str


@dataclass(frozen=True)
class PartBelow:
    """What stands below a figure with axes of its own: the difference of its lines, or numbers that a paper prints.

    Attributes:
        score: tables to the frame that is drawn; a column `printed` that is true draws rows in grey, as a paper's.
        plot: what draws its panels.
        ending: of the name of its PDF, which is a file of its own.
    """

    score: Score
    plot: Plot
    ending: str


@dataclass(frozen=True)
class Figure:
    """One figure of an experiment.

    Attributes:
        title: what is drawn.
        caption: how to read it; a sentence on means, intervals and n is added, for {schedule} one on the learning rate
            where all networks have the same schedule, and for {batch_size} their batch sizes.
        score: tables to the frame that is drawn; its column `panel` tells the panels apart.
        plot: what draws its panels.
        headline: what is seen, its title in place of the other where the claims hold.
        below: what stands below it, with axes of its own.
        spans: stretches that a paper names.
        over: what means and intervals are over, in the singular.
    """

    title: str
    caption: str
    score: Score
    plot: Plot
    headline: Headline | None = None
    below: PartBelow | None = None
    spans: Sequence[Span] = ()
    over: str = "seed"


@dataclass(frozen=True)
class Claim:
    """A statement with direction and margin, written down before the numbers are known, or *post hoc*.

    Attributes:
        text: a sentence.
        score: tables to the rows of `frames.interval`; each row is a condition.
        margin: `above(b, unit, reason)`, `below(b, ...)` or `within(a, b, ...)`.
        lines: what the text says of the rows: that `each` of them is so, or that `some` are.
        post_hoc: what was done to it when numbers were known: `asked`, or how it was narrowed, extended or restored;
            empty if nothing was.
    """

    text: str
    score: Score
    margin: Margin
    lines: Lines = field(kw_only=True)
    post_hoc: str = field(default="", kw_only=True)

    def state(self) -> str:
        """State the claim, and whether it is post hoc.

        >>> Claim("It is large.", None, None, lines="each", post_hoc="asked").state()
        'It is large (post hoc).'
        >>> Claim("It is large.", None, None, lines="each", post_hoc="layers after the first only").state()
        'It is large (post hoc: layers after the first only).'
        """
        if not self.post_hoc:
            return self.text
        how = "" if self.post_hoc == "asked" else f": {self.post_hoc}"
        return f"{self.text.removesuffix('.')} (post hoc{how})."


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question, and what is drawn and decided on it.

    Attributes:
        figures: what is drawn, by the names of the files.
        claims: what is decided, by short names.
        bears_on: numbers of questions and hypotheses.
        sweeps: the files in conf/experiment that measure it; without any the one of its name.
        columns: measured values that its figures and claims read; committed tables have no others.
        command: what makes its results, a line each; empty: its sweeps.
        name: of its module, of its file in conf/experiment and of its results.
        question, source: the first paragraph of its module's docstring, and the others: where the question comes from.
            `lab.registry.find_experiment` fills in these three.
    """

    figures: Mapping[str, Figure]
    claims: Mapping[str, Claim] = field(default_factory=dict)
    bears_on: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    command: str = ""
    name: str = ""
    question: str = ""
    source: str = ""


def decide(experiment: Experiment, tables: Tables) -> pd.DataFrame:
    """Decide each claim from the tables of its experiment.

    Returns:
        A row for each condition of each claim, with the columns experiment, claim, condition, where (the condition as
        a tuple of words, in the same order in all rows of a claim), mean, low, high (the 95% interval of the condition
        alone), n, verdict, note (see `judge`), and in words number (mean and interval, or a count) and said (verdict
        and note). A claim without rows has one without numbers, *not measured*; so has one whose score raises, *cannot
        be scored*, noting the line of the question's code and the reason.
    """
    decided = []
    for name, claim in experiment.claims.items():
        try:
            conditions = _judge_conditions(claim, tables)
        except NoRows:
            conditions = [_leave_open("no rows", NOT_MEASURED)]
        except (Exception, SystemExit) as error:  # the code of a question may raise either
            conditions = [_leave_open("all conditions", CANNOT_BE_SCORED, where_raised(error))]
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
            words = {"condition": condition, "number": number, "said": said}
            decided.append({"experiment": experiment.name, "claim": name, **row, **words})

    columns = ["experiment", "claim", "condition", "where", *NUMBERS, "verdict", "note", "number", "said"]
    return pd.DataFrame(decided, columns=columns)


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
        if pd.isna(value):
            words.append("")
        elif key == "estimator":
            words.append(estimator_label(value, row.get("momentum", math.nan)))
        else:
            words.append(name_value(key, value))
    return tuple(words)


def state_headlines(experiment: Experiment, verdicts: pd.DataFrame) -> Experiment:
    """Give each figure whose headline holds, all claims in all conditions, that as its title; see `decide`."""
    figures = dict(experiment.figures)
    for name, figure in figures.items():
        headline = figure.headline
        if headline is None:
            continue
        has_held = _have_verdict(verdicts, headline.claims, "holds")
        has_failed = _have_verdict(verdicts, headline.fails, "fails")
        if has_held and has_failed:
            quoted = [experiment.claims[claim] for claim in (*headline.claims, *headline.fails)]
            mark = POST_HOC if any(claim.post_hoc for claim in quoted) else ""
            figures[name] = replace(figure, title=headline.text + mark)
    return replace(experiment, figures=figures)


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
    if not conditions:
        return cells

    wanted = []
    for words in conditions:
        wanted.append({*words.split(", ")})

    def is_wanted(where: tuple[str, ...]) -> bool:
        return any(_has_all_words(where, words) for words in wanted)

    is_chosen = cells["where"].map(is_wanted)
    # Without rows `map` returns objects, by which pandas would select columns.
    return cells[is_chosen.astype(bool)]


def _has_all_words(where: tuple[str, ...], words: set[str]) -> bool:
    """Return whether the values of a row have these words, and each value all of its own or none.

    >>> _has_all_words(("16", "one-cycle, at the end"), {"16", "one-cycle", "at the end"})
    True
    >>> _has_all_words(("16", "one-cycle, at the end"), {"16", "one-cycle"})
    False
    """
    named: set[str] = set()
    for value in where:
        parts = {*value.split(", ")}
        if parts <= words:
            named |= parts
    return named == words
