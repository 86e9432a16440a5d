"""Verdicts on claims: what is to hold of a score's rows, and the tests over seeds that decide it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

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
class Margin:
    """Two bounds between which a mean over seeds is to lie; one of them may be infinite.

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


def judge(frame: pd.DataFrame, margin: Margin) -> pd.DataFrame:
    """Decide each row of a score.

    *holds*: a one-sided t test over seeds (two for `within`) is significant at 2.5%, after Holm's correction over the
    rows of the claim. *fails*: a test of the opposite is (for `within` one of two, each at 1.25%). *undecided*: neither
    is; the note says what the row would be without the correction, `holds by itself`. *one seed*, *not measured*:
    there is no test. *not tested*: a share of so few networks that no count could decide. Rows with one value for all
    seeds are compared with the margin, and the note says so.

    Args:
        frame: rows of `frames.interval`.
        margin: what is to hold of each.

    Returns:
        The columns `verdict` and `note`, a row for each of `frame`.
    """
    is_equal = _find_equal(frame)
    is_undecidable = _find_undecidable(frame, margin)

    p_holds, p_fails = p_values(frame, margin)
    is_tested = ~(is_equal | is_undecidable)
    p_holds = np.where(is_tested, p_holds, np.nan)  # what is not tested has no part in the correction
    p_fails = np.where(is_tested, p_fails, np.nan)

    corrected_holds = p_holds if margin.together else holm(p_holds)
    corrected_fails = holm(p_fails)
    verdict = _choose_verdicts(frame, corrected_holds, corrected_fails)
    alone = _choose_verdicts(frame, p_holds, p_fails)
    is_by_holm = (verdict == "undecided") & (alone != "undecided")
    note = np.where(is_by_holm, alone + " by itself", "")

    verdict[is_equal] = _compare(frame, margin)[is_equal]
    note[is_equal] = NO_SPREAD
    verdict[is_undecidable] = NOT_TESTED
    return pd.DataFrame({"verdict": verdict, "note": note})


def _choose_verdicts(frame: pd.DataFrame, holds: np.ndarray, fails: np.ndarray) -> np.ndarray:
    """Choose words for p-values of the tests that a margin holds, and that its opposite does."""
    n = frame["n"].to_numpy()
    cases = [n == 0, n == 1, holds <= LEVEL, fails <= LEVEL]
    return np.select(cases, [NOT_MEASURED, "one seed", "holds", "fails"], "undecided").astype(object)


def _find_equal(frame: pd.DataFrame) -> np.ndarray:
    """Find the rows whose value is the same for all of several seeds, up to rounding."""
    sizes = frame["mean"].abs().clip(lower=1e-3)
    is_log = frame["log"].to_numpy(bool)
    sizes[is_log] = 1.0  # the error of a logarithm is relative already

    rounding = 1e-12 * sizes.to_numpy()
    errors = frame["error"].to_numpy(float)
    is_rounding = errors <= rounding
    return _find_several(frame) & is_rounding


def _find_several(frame: pd.DataFrame) -> np.ndarray:
    """Find the rows that are of several seeds."""
    return frame["n"].to_numpy() > 1


def _compare(frame: pd.DataFrame, margin: Margin) -> np.ndarray:
    """Compare means with the bounds, without a test; a mean that equals a bound is undecided."""
    means = frame["mean"].to_numpy(float)
    is_at_bound = _are_equal(means, margin.low) | _are_equal(means, margin.high)
    is_inside = (means > margin.low) & (means < margin.high)
    return np.select([is_at_bound, is_inside], ["undecided", "holds"], "fails").astype(object)


def _are_equal(means: np.ndarray, bounds: float | np.ndarray) -> np.ndarray:
    """Find the means that equal their bounds, up to rounding."""
    return np.isclose(means, bounds, rtol=1e-12, atol=1e-12)


def _find_undecidable(frame: pd.DataFrame, margin: Margin) -> np.ndarray:
    """Find shares of so few networks that no count of them decides, not even none or all."""
    of_none = p_values(frame.assign(mean=0.0), margin)
    of_all = p_values(frame.assign(mean=1.0), margin)
    smallest = np.min([*of_none, *of_all], axis=0)
    return _find_shares(frame) & (smallest > LEVEL)


def _find_shares(frame: pd.DataFrame) -> np.ndarray:
    """Find the rows that are shares of several networks."""
    is_share = np.asarray(frame.get("share", False), bool)
    return is_share & _find_several(frame)


def p_values(frame: pd.DataFrame, margin: Margin) -> tuple[np.ndarray, np.ndarray]:
    """Test of each row that the margin holds, and that the opposite does; NaN without two seeds.

    Student's t of the mean against each bound, of logarithms where those of the score are; of a share of the seeds
    the exact binomial test. `within` needs both to be significant, its opposite one of the two, at half the level each.
    """
    above_low, below_low = _test_bound(frame, margin.low)
    above_high, below_high = _test_bound(frame, margin.high)
    holds = np.maximum(above_low, below_high)

    is_bound = np.isfinite([margin.low, margin.high])
    bounds = is_bound.sum()
    beyond_one = np.minimum(below_low, above_high)
    fails = np.minimum(1, bounds * beyond_one)
    return holds, fails


def _test_bound(frame: pd.DataFrame, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Test of each row that the mean lies above the bound, and that it lies below: two p-values."""
    n = frame["n"].to_numpy(float)
    freedom = np.where(n > 1, n - 1, np.nan)
    distance = _measure_distance(frame, bound)
    p_above = special.stdtr(freedom, -distance)
    p_below = special.stdtr(freedom, distance)

    is_share = _find_shares(frame)
    if is_share.any():
        share_above, share_below = _test_shares(frame, bound)
        p_above = np.where(is_share, share_above, p_above)
        p_below = np.where(is_share, share_below, p_below)
    return p_above, p_below


def _test_shares(frame: pd.DataFrame, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Test of each row, as if it were a share, that it lies above the bound, and that it lies below: exact p-values."""
    from scipy import stats  # takes long to import, and few tables have shares

    n = frame["n"].to_numpy(float)
    hits = (frame["mean"] * n).round().to_numpy()
    share = min(max(bound, 0), 1)
    p_above = stats.binom.sf(hits - 1, n, share)
    p_below = stats.binom.cdf(hits, n, share)

    certain = np.zeros(len(frame))
    if bound < 0:  # each share lies above it
        p_above = certain
    if bound > 1:  # each share lies below it
        p_below = certain
    return p_above, p_below


def _measure_distance(frame: pd.DataFrame, bound: float) -> np.ndarray:
    """Measure how far the means are from the bound, in standard errors; 0 where they agree but for rounding."""
    is_log = frame["log"].to_numpy(bool)
    means = frame["mean"].to_numpy(float)
    errors = frame["error"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(means)
        log_bound = np.log(max(bound, 0))
        means = np.where(is_log, logarithms, means)
        bounds = np.where(is_log, log_bound, bound)
        distance = (means - bounds) / errors

    is_at_bound = _are_equal(means, bounds)
    return np.where(is_at_bound, 0, distance)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values by Holm (1979): the k-th smallest of m times m − k + 1, never below a smaller one's.

    NaN, where there was no test, stays NaN and does not count.

    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    is_test = ~np.isnan(p)
    places = np.arange(len(p))
    factors = np.maximum(is_test.sum() - places, 1)

    order = np.argsort(p)  # NaN last
    corrected = factors * p[order]
    increasing = np.maximum.accumulate(corrected)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, increasing)
    return adjusted
