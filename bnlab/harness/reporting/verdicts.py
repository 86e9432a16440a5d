"""Verdicts on claims: what is to hold of a score's rows, and the tests over seeds that decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special

LEVEL = 0.025
"""Probability of an error that a claim's verdicts allow, over all its conditions, in each direction.

A one-sided test at 2.5% agrees with the 95% interval: what holds alone has its whole interval beyond the margin.
"""
Lines = Literal["each", "some"]
"""What a claim with several conditions, a line each, says: that *each* of them is so, or that *some* are."""
NOT_MEASURED = "not measured"
"""The verdict on a condition, or a claim, for which there is no row."""
CANNOT_BE_SCORED = "cannot be scored"
"""The verdict on a claim whose score raises; the note says why."""
NOT_TESTED = "not tested"
"""The verdict on a share of so few networks that no count of them could decide, or of all or none in each seed."""
NO_SPREAD = "the same for all seeds, not tested"
"""The note on a condition that has one value for all seeds, as counts have: it is compared with the margin."""
SHARE_UNITS = ("share", "of the networks", "of the seeds", "of the steps")
"""Units of what lies between 0, none, and 1, all."""


@dataclass(frozen=True)
class Margin:
    """Two bounds between which a mean over seeds is to lie; one of them may be infinite.

    Attributes:
        low, high: the bounds.
        unit: of both and of the score's mean.
        reason: why the margin is what it is.
    """

    low: float
    high: float
    unit: str = ""
    reason: str = ""

    @property
    def words(self) -> str:
        """Bounds with their unit, as in `below 0.3 points`.

        >>> above(1.0, "points").words, within(-1.0, 1.0, "points").words
        ('above 1 point', 'from -1 to 1 points')
        """
        low = f"{self.low:.3g}"
        high = f"{self.high:.3g}"
        if math.isinf(self.high):
            words = f"above {low}"
        elif math.isinf(self.low):
            words = f"below {high}"
        else:
            words = f"from {low} to {high}"

        unit = self.unit
        if unit == "points" and words in ("above 1", "below 1"):
            unit = "point"
        return f"{words} {unit}".rstrip()


def above(bound: float, unit: str = "", reason: str = "") -> Margin:
    """Require a mean that is larger than the bound."""
    return Margin(bound, math.inf, unit, reason)


def below(bound: float, unit: str = "", reason: str = "") -> Margin:
    """Require a mean that is smaller than the bound."""
    return Margin(-math.inf, bound, unit, reason)


def within(low: float, high: float, unit: str = "", reason: str = "") -> Margin:
    """Require a mean between two bounds."""
    return Margin(low, high, unit, reason)


def judge(frame: pd.DataFrame, margin: Margin, lines: Lines) -> pd.DataFrame:
    """Decide each row of a score.

    *holds*: a one-sided t test over seeds (two for `within`) is significant at 2.5%. *fails*: a test of the opposite is
    (for `within` one of two, each at 1.25%). *undecided*: neither is.

    A claim about *each* row is a conjunction: where every row holds at this level, so does the claim, without a
    correction (an intersection-union test; Berger 1982). That some row fails could be so by chance in one of many, and
    takes Holm's correction. Of a claim about *some* rows it is the other way round. Where a conjunction is not shown,
    its rows are decided one by one, with the correction, and the note says what the row would be alone. Using one step
    after the other needs no further correction: every row that they decide, Hochberg's procedure (1988) decides, too.

    *one seed*, *not measured*: there is no test. *not tested*: a share of so few networks that no count could decide,
    or of all or none in each seed. Other rows with one value for all seeds are compared with the margin, and the note
    says so.

    Args:
        frame: rows of `frames.interval`.
        margin: what is to hold of each.
        lines: what the claim says of its rows.

    Returns:
        The columns `verdict` and `note`, a row for each of `frame`.
    """
    rows = frame.to_dict("records")
    untested = [_decide_without_test(row, margin) for row in rows]
    p = np.full((len(rows), 2), np.nan)  # what is not tested has no part in the correction
    for row_number, row in enumerate(rows):
        if untested[row_number] is None:
            p[row_number] = compute_p_values(row, margin)
    holds, fails = p.T
    corrected_holds = holm(holds)
    corrected_fails = holm(fails)
    if lines == "each" and _are_all_shown(holds, untested, "holds"):
        corrected_holds = holds
    if lines == "some" and _are_all_shown(fails, untested, "fails"):
        corrected_fails = fails
    count = np.isfinite(holds).sum()

    judged = []
    for row_number, decided in enumerate(untested):
        if decided is not None:
            judged.append(decided)
            continue
        verdict = _choose_verdict(corrected_holds[row_number], corrected_fails[row_number])
        uncorrected = _choose_verdict(holds[row_number], fails[row_number])
        note = ""
        if uncorrected != verdict:
            note = f"{uncorrected} alone, not among {count}"
        judged.append((verdict, note))
    return pd.DataFrame(judged, columns=["verdict", "note"])


def _are_all_shown(p: np.ndarray, untested: Sequence[tuple[str, str] | None], verdict: str) -> bool:
    """Find out whether each row is shown: by its test alone, or as one that needs none."""
    others = {decided[0] for decided in untested if decided is not None}
    return others <= {verdict} and bool((p[np.isfinite(p)] <= LEVEL).all())


def _choose_verdict(p_holds: float, p_fails: float) -> str:
    if p_holds <= LEVEL:
        return "holds"
    return "fails" if p_fails <= LEVEL else "undecided"


def _decide_without_test(row: Mapping[Any, Any], margin: Margin) -> tuple[str, str] | None:
    """Decide a row for which there is no test: verdict and note; None for a row that is tested.

    There is none for fewer than two seeds, for a share of so few networks that no count would be significant, and for
    seeds that all have the same value.
    """
    if row["n"] < 2:
        verdict = "one seed" if row["n"] else NOT_MEASURED
        return verdict, ""

    if row.get("share"):
        # If neither no hit nor all hits would be significant, no count is.
        of_none = compute_p_values({**row, "mean": 0.0}, margin)
        of_all = compute_p_values({**row, "mean": 1.0}, margin)
        smallest = min(*of_none, *of_all)
        if smallest <= LEVEL:
            return None
        return NOT_TESTED, ""

    mean = row["mean"]
    # Seeds that all have the same value may still have an error that is left by rounding. It is relative to
    # the mean, unless that is near 0; the error of a logarithm is relative already.
    size = 1.0 if row["log"] else max(abs(mean), 1e-3)
    if not row["error"] <= 1e-12 * size:  # also where it is NaN: tested, such a row stays undecided
        return None
    # All of a few networks, or none, says little of the next one.
    if margin.unit in SHARE_UNITS and (_are_equal(mean, 0.0) or _are_equal(mean, 1.0)):
        return NOT_TESTED, ""
    if _are_equal(mean, margin.low) or _are_equal(mean, margin.high):
        return "undecided", NO_SPREAD
    if margin.low < mean < margin.high:
        return "holds", NO_SPREAD
    return "fails", NO_SPREAD


def _are_equal(mean: float, bound: float) -> bool:
    """Find out if a mean equals a bound, up to rounding."""
    return bool(np.isclose(mean, bound, rtol=1e-12, atol=1e-12))


def compute_p_values(row: Mapping[Any, Any], margin: Margin) -> tuple[float, float]:
    """Test that the margin holds of a row of several seeds, and that the opposite does.

    Student's t of the mean against each bound, of logarithms where those of the score are; of a share of the seeds
    the exact binomial test. `within` needs both to be significant, its opposite one of the two, at half the level each.
    """
    above_low, below_low = _test_bound(row, margin.low)
    above_high, below_high = _test_bound(row, margin.high)
    # Both bounds have to be shown to hold, so the larger p-value decides and needs no correction.
    # An infinite bound has a p-value of 0 here, and of 1 below.
    holds = np.maximum(above_low, below_high)

    # Either side alone refutes the margin, so that with two bounds each has half of the level (Bonferroni).
    bounds = np.isfinite([margin.low, margin.high]).sum()
    beyond_one = np.minimum(below_low, above_high)
    fails = np.minimum(1, bounds * beyond_one)
    return holds, fails


def _test_bound(row: Mapping[Any, Any], bound: float) -> tuple[float, float]:
    """Test that the mean lies above the bound, and that it lies below: two p-values."""
    mean = row["mean"]
    n = row["n"]
    if row.get("share"):
        hits = round(mean * n)
        share = min(max(bound, 0), 1)
        # A share is always above a bound below 0. With the bound cut to 0, the test would not see that.
        # So many hits or more are so many misses or fewer: `1 - bdtr(hits - 1, ...)` is NaN without any hit.
        p_above = 0.0 if bound < 0 else special.bdtr(n - hits, n, 1 - share)
        p_below = 0.0 if bound > 1 else special.bdtr(hits, n, share)
        return p_above, p_below

    with np.errstate(divide="ignore", invalid="ignore"):
        if row["log"]:
            mean = np.log(mean)
            # A bound of 0 or below becomes −∞: every positive value lies above it.
            bound = np.log(max(bound, 0))
        # A mean at the bound is neither above nor below it, also where its error is 0 and the ratio would have no
        # value.
        distance = 0.0
        if not _are_equal(mean, bound):
            # Division by an error of 0 gives ±∞ in numpy; with Python's numbers it would raise.
            distance = (mean - bound) / np.float64(row["error"])
    return special.stdtr(n - 1, -distance), special.stdtr(n - 1, distance)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values by Holm (1979): the k-th smallest of m times m − k + 1, never below a smaller one's.

    NaN, where there was no test, stays NaN and does not count.

    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    is_test = ~np.isnan(p)
    ranks = np.arange(len(p))
    count = is_test.sum()
    factors = np.maximum(count - ranks, 1)

    # NaN is sorted last, so that `accumulate` carries it into no test.
    order = np.argsort(p)
    corrected = factors * p[order]
    increasing = np.maximum.accumulate(corrected)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, increasing)
    return adjusted
