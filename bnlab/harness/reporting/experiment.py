"""An experiment as a page of declarations, and the verdicts on its claims, by rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.frames.means import MEASURES, NUMBERS, Score, Tables
from bnlab.harness.reporting.frames.selection import name_value, put_in_order
from bnlab.harness.reporting.plots import Plot
from bnlab.harness.reporting.style import estimator_label

LEVEL = 0.05
"""Probability of an error that a claim's verdicts allow, over all its conditions, in each direction."""
NOT_MEASURED = "not measured"
"""The verdict on a condition, or a claim, for which there is no row."""


@dataclass(frozen=True)
class Rule:
    """The mean over seeds lies between two bounds, one of which may be infinite.

    Attributes:
        low, high: the bounds.
        unit: of both and of the score's mean.
        reason: why the margin is what it is.
        together: the claim is that all conditions hold, as one that says *never*. Then *holds* is not corrected, since
            one that does not hold is enough against it.
    """

    low: float
    high: float
    unit: str = ""
    reason: str = ""
    together: bool = False

    @property
    def margin(self) -> str:
        """The bounds with their unit, as in `below 0.3 points`.

        >>> above(1.0, "points").margin, within(-1.0, 1.0, "points").margin
        ('above 1 point', 'from -1 to 1 points')
        """
        words = f"from {self.low:.3g} to {self.high:.3g}"
        if math.isinf(self.high):
            words = f"above {self.low:.3g}"
        elif math.isinf(self.low):
            words = f"below {self.high:.3g}"
        unit = "point" if self.unit == "points" and words in ("above 1", "below 1") else self.unit
        return f"{words} {unit}".rstrip()


def above(bound: float, unit: str = "", reason: str = "") -> Rule:
    """The mean is larger than the bound."""
    return Rule(bound, math.inf, unit, reason)


def below(bound: float, unit: str = "", reason: str = "") -> Rule:
    """The mean is smaller than the bound."""
    return Rule(-math.inf, bound, unit, reason)


def within(low: float, high: float, unit: str = "", reason: str = "") -> Rule:
    """The mean lies between two bounds."""
    return Rule(low, high, unit, reason)


@dataclass(frozen=True)
class Figure:
    """One figure of an experiment.

    Attributes:
        title: what is drawn.
        caption: how to read it; a sentence on means, intervals and n is added, for {schedule} one on the learning rate
            where all networks have the same schedule, and for {batch_size} their batch sizes.
        score: tables to the frame that is drawn; its column `panel` tells the panels apart.
        plot: what draws its panels.
    """

    title: str
    caption: str
    score: Score
    plot: Plot


@dataclass(frozen=True)
class Claim:
    """What is said to hold, with direction and margin, written down before the numbers are known.

    Attributes:
        text: a sentence.
        score: tables to the rows of `frames.interval`; each row is a condition.
        rule: `above(b, unit, reason)`, `below(b, ...)` or `within(a, b, ...)`.
        answers: which of the experiment's questions and hypotheses it bears on; empty: all.
    """

    text: str
    score: Score
    rule: Rule
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question and what answers it.

    Attributes:
        answers: numbers of the questions and hypotheses that it bears on.
        figures: what is drawn, by the names of the files.
        claims: what is decided, by short names.
        command: what makes its results, a line each; empty: its sweeps.
        name: of its module, of its file in conf/experiment and of its results.
        question, source: the first paragraph of its module's docstring, and the others: where the question comes from.
            `experiments.questions.find_experiment` fills in these three.
    """

    answers: tuple[str, ...]
    figures: Mapping[str, Figure]
    claims: Mapping[str, Claim]
    command: str = ""
    name: str = ""
    question: str = ""
    source: str = ""


def answers(experiment: Experiment, tables: Tables) -> pd.DataFrame:
    """What the tables say on each claim: experiment, claim, condition, where, mean, low, high, n, verdict.

    A row is a condition; `where` is it as a tuple of words, in the same order in all rows of a claim. *holds*: a
    one-sided t test over seeds (two for `within`) is significant at 5%, after Holm's correction over the claim's
    conditions; *fails*: so is one of the opposite; *undecided*: neither is; *one seed*: there is no test; *not
    measured*: there is no row. `low` and `high` are the 95% interval of the condition alone, not adjusted. A claim for
    which there is no row has one without numbers.
    """
    claims = experiment.claims.items()
    found = [(experiment.name, name, *row) for name, claim in claims for row in _decide(name, claim, tables)]
    return pd.DataFrame(found, columns=["experiment", "claim", "condition", "where", *NUMBERS, "verdict"])


def _decide(name: str, claim: Claim, tables: Tables) -> list[tuple[Any, ...]]:
    """Condition, where, mean, low, high, n and verdict of each condition."""
    try:
        frame = claim.score(tables)
    except NoRows:
        frame = pd.DataFrame()
    except Exception as error:
        error.add_note(f"claim {name}")
        raise
    if frame.empty:
        return [("no rows", ("no rows",), np.nan, np.nan, np.nan, 0, NOT_MEASURED)]
    frame = _in_order(frame)
    found = []
    for row, verdict in zip(frame.to_dict("records"), verdicts(frame, claim.rule), strict=True):
        where = _list_coordinates(row)
        found.append((", ".join(filter(None, where)), where, *(row[key] for key in NUMBERS), verdict))
    return found


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Panels in order of appearance, within them the other conditions in theirs."""
    others = [str(column) for column in frame if column not in (*MEASURES, "panel")]
    ordered = frame.sort_values(others, kind="stable") if others else frame
    return put_in_order(ordered, "panel", frame["panel"].unique()) if "panel" in frame else ordered


def _list_coordinates(row: dict[Any, Any]) -> tuple[str, ...]:
    """In words, what tells a row of a score from the others; empty where it has no value."""
    words = []
    for key, value in row.items():
        if key in MEASURES or (key == "momentum" and "estimator" in row):
            continue
        if pd.isna(value):
            words.append("")
        elif key == "estimator":
            words.append(estimator_label(value, row.get("momentum", math.nan)))
        else:
            words.append(name_value(key, value))
    return tuple(words)


def verdicts(frame: pd.DataFrame, rule: Rule) -> list[str]:
    """The verdict on each row of a score: see `answers`."""
    p_holds, p_fails = p_values(frame, rule)
    holds, fails = p_holds if rule.together else holm(p_holds), holm(p_fails)
    n = frame["n"].to_numpy()
    cases = [n == 0, n == 1, holds <= LEVEL, fails <= LEVEL]
    return list(np.select(cases, [NOT_MEASURED, "one seed", "holds", "fails"], "undecided").tolist())


def p_values(frame: pd.DataFrame, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Of each row: of the tests that the rule holds, and that the opposite does; NaN without two seeds.

    Student's t of the mean against each bound, of logarithms where those of the score are; of a share of the seeds
    the exact binomial test. `within` needs both to be significant, its opposite one of the two, at half the level each.
    """
    above_low, below_low = _test_bound(frame, rule.low)
    above_high, below_high = _test_bound(frame, rule.high)
    bounds = np.isfinite([rule.low, rule.high]).sum()
    return np.maximum(above_low, below_high), np.minimum(1, bounds * np.minimum(below_low, above_high))


def _test_bound(frame: pd.DataFrame, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each row: p of the tests that the mean lies above the bound, and below it."""
    n, distance = frame["n"].to_numpy(float), _distance(frame, bound)
    freedom = np.where(n > 1, n - 1, np.nan)
    p_above, p_below = stats.t.sf(distance, freedom), stats.t.cdf(distance, freedom)
    shares = np.asarray(frame.get("share", False), bool) & (n > 1)
    if shares.any():
        hits, share = (frame["mean"] * n).round().to_numpy(), min(max(bound, 0), 1)
        p_above = np.where(shares, stats.binom.sf(hits - 1, n, share) if bound >= 0 else 0, p_above)
        p_below = np.where(shares, stats.binom.cdf(hits, n, share) if bound <= 1 else 0, p_below)
    return p_above, p_below


def _distance(frame: pd.DataFrame, bound: float) -> np.ndarray:
    """Of the means from the bound, in standard errors; 0 where they agree but for rounding."""
    is_log, means = frame["log"].to_numpy(bool), frame["mean"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(is_log, np.log(means), means)
        bounds = np.where(is_log, np.log(max(bound, 0)), bound)
        distance = (means - bounds) / frame["error"].to_numpy(float)
    return np.where(np.isclose(means, bounds, rtol=1e-12, atol=1e-12), 0, distance)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (1979): the k-th smallest of m times m − k + 1, never below a smaller one's.

    NaN, where there was no test, stays NaN and does not count.

    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    order = np.argsort(p)  # NaN last
    tests = int((~np.isnan(p)).sum())
    factors = np.maximum(tests - np.arange(len(p)), 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted
