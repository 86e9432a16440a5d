"""An experiment as a page of declarations, and the verdicts on its claims, by rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bnlab.harness.errors import NoRows, where_raised
from bnlab.harness.reporting.frames.means import MEASURES, NUMBERS, Score, Tables
from bnlab.harness.reporting.frames.selection import name_value, put_in_order
from bnlab.harness.reporting.plots import Plot
from bnlab.harness.reporting.style import estimator_label

LEVEL = 0.025
"""Probability of an error that a claim's verdicts allow, over all its conditions, in each direction.

A one-sided test at 2.5% agrees with the 95% interval: what holds by itself has its whole interval beyond the margin.
"""
NOT_MEASURED = "not measured"
"""The verdict on a condition, or a claim, for which there is no row."""
CANNOT_BE_SCORED = "cannot be scored"
"""The verdict on a claim whose score raises; the note says why."""
NOT_TESTED = "not tested"
"""The verdict on a share of so few networks that no count of them could decide."""
NO_SPREAD = "the same for all seeds, not tested"
"""The note on a condition that has one value for all seeds, as counts have: it is compared with the margin."""


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
    """What the tables say on each claim.

    Args:
        experiment: the question with its claims.
        tables: those of the experiment.

    Returns:
        A row for each condition of each claim, with the columns experiment, claim, condition, where (the condition as
        a tuple of words, in the same order in all rows of a claim), mean, low, high (the 95% interval of the condition
        alone), n, verdict and note (see `judge`). A claim without rows has one without numbers, *not measured*; so has
        one whose score raises, *cannot be scored*, noting the line of the question's code and the reason.
    """
    found: list[tuple[Any, ...]] = []
    for name, claim in experiment.claims.items():
        found += [(experiment.name, name, *row) for row in _decide(claim, tables)]
    return pd.DataFrame(found, columns=["experiment", "claim", "condition", "where", *NUMBERS, "verdict", "note"])


def _decide(claim: Claim, tables: Tables) -> list[tuple[Any, ...]]:
    """Condition, where, mean, low, high, n, verdict and note of each condition."""
    try:
        return _score(claim, tables)
    except NoRows:
        return [_leave_open("no rows", NOT_MEASURED)]
    except (Exception, SystemExit) as error:  # the code of a question may raise either
        return [_leave_open("all conditions", CANNOT_BE_SCORED, where_raised(error))]


def _leave_open(condition: str, verdict: str, note: str = "") -> tuple[Any, ...]:
    """A row of `_decide` for a claim without numbers."""
    return condition, (condition,), np.nan, np.nan, np.nan, 0, verdict, note


def _score(claim: Claim, tables: Tables) -> list[tuple[Any, ...]]:
    """As `_decide`, of a claim whose score has rows."""
    frame = claim.score(tables)
    if frame.empty:
        raise NoRows("no rows")

    frame = _in_order(frame)
    judged = judge(frame, claim.rule)
    found = []
    for row, verdict in zip(frame.to_dict("records"), judged.itertuples(index=False), strict=True):
        where = _list_coordinates(row)
        condition = ", ".join(filter(None, where))
        found.append((condition, where, *(row[key] for key in NUMBERS), verdict.verdict, verdict.note))
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


def judge(frame: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Decide each row of a score.

    *holds*: a one-sided t test over seeds (two for `within`) is significant at 2.5%, after Holm's correction over the
    rows of the claim. *fails*: a test of the opposite is (for `within` one of two, each at 1.25%). *undecided*: neither
    is; the note says what the row would be without the correction, `holds by itself`. *one seed*, *not measured*:
    there is no test. *not tested*: a share of so few networks that no count could decide. Rows with one value for all
    seeds are compared with the margin, and the note says so.

    Args:
        frame: rows of `frames.interval`.
        rule: what is to hold of each.

    Returns:
        The columns `verdict` and `note`, a row for each of `frame`.
    """
    is_equal = _find_equal(frame)
    is_undecidable = _find_undecidable(frame, rule)
    is_tested = ~(is_equal | is_undecidable)  # what is not has no part in the correction
    p_holds, p_fails = (np.where(is_tested, p, np.nan) for p in p_values(frame, rule))

    corrected_holds = p_holds if rule.together else holm(p_holds)
    verdict = _choose_verdicts(frame, corrected_holds, holm(p_fails))
    alone = _choose_verdicts(frame, p_holds, p_fails)
    by_holm = (verdict == "undecided") & (alone != "undecided")
    note = np.where(by_holm, alone + " by itself", "")

    verdict[is_equal] = _compare(frame, rule)[is_equal]
    note[is_equal] = NO_SPREAD
    verdict[is_undecidable] = NOT_TESTED
    return pd.DataFrame({"verdict": verdict, "note": note})


def _choose_verdicts(frame: pd.DataFrame, holds: np.ndarray, fails: np.ndarray) -> np.ndarray:
    """Words for p-values of the tests that a rule holds, and that its opposite does."""
    n = frame["n"].to_numpy()
    cases = [n == 0, n == 1, holds <= LEVEL, fails <= LEVEL]
    return np.select(cases, [NOT_MEASURED, "one seed", "holds", "fails"], "undecided").astype(object)


def _find_equal(frame: pd.DataFrame) -> np.ndarray:
    """Find the rows whose value is the same for all of several seeds, up to rounding."""
    errors = frame["error"].to_numpy(float)  # of a logarithm where `log`: relative already
    sizes = np.where(frame["log"].to_numpy(bool), 1.0, frame["mean"].abs().clip(lower=1e-3))
    return (frame["n"].to_numpy() > 1) & (errors <= 1e-12 * sizes)


def _compare(frame: pd.DataFrame, rule: Rule) -> np.ndarray:
    """Compare means with the bounds, without a test; a mean that equals a bound is undecided."""
    means = frame["mean"].to_numpy(float)
    at_bound = np.isclose(means, rule.low, rtol=1e-12, atol=1e-12) | np.isclose(
        means, rule.high, rtol=1e-12, atol=1e-12
    )
    inside = (means > rule.low) & (means < rule.high)
    return np.select([at_bound, inside], ["undecided", "holds"], "fails").astype(object)


def _find_undecidable(frame: pd.DataFrame, rule: Rule) -> np.ndarray:
    """Find shares of so few networks that no count of them decides, not even none or all."""
    of_none = p_values(frame.assign(mean=0.0), rule)
    of_all = p_values(frame.assign(mean=1.0), rule)
    return _find_shares(frame) & (np.min([*of_none, *of_all], axis=0) > LEVEL)


def _find_shares(frame: pd.DataFrame) -> np.ndarray:
    """Find the rows that are shares of several networks."""
    return np.asarray(frame.get("share", False), bool) & (frame["n"].to_numpy() > 1)


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
    shares = _find_shares(frame)
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
