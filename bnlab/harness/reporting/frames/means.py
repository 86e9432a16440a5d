"""Means over layers and seeds, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames.selection import list_groups, require_columns, require_one_row

_BOUNDS = ("mean", "low", "high")
NUMBERS = (*_BOUNDS, "n")
"""The columns of `interval` that are shown."""
MEASURES = (*NUMBERS, "error", "log", "share")
"""All columns that `interval` adds."""


class _Estimate(NamedTuple):
    """The mean of a sample, with the bounds of its 95% interval, its size and the mean's standard error."""

    mean: float
    low: float
    high: float
    n: int
    error: float


def average(frame: pd.DataFrame, value: str, by: Sequence[str], *, geometric: bool = False) -> pd.DataFrame:
    """Average a column over all rows that agree in `by`, as over a network's layers; NaN is left out.

    Args:
        frame: any rows.
        value: the column of which the mean is taken.
        by: what is told apart, such as "batch_size", "seed"; null keys are kept.
        geometric: the geometric mean, for positive values such as ratios.

    Returns:
        The columns `by` and `value`.
    """
    require_columns(frame, [value, *by])
    if not geometric:
        return _average(frame, value, by)

    logarithms = frame.copy()
    logarithms[value] = _take_log(frame[value])
    means = _average(logarithms, value, by)
    means[value] = np.exp(means[value])
    return means


def _average(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    groups = frame.groupby([*by], dropna=False, sort=False)
    return groups[value].mean().reset_index()


def best_on_average(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Select the rows of the momentum that has the highest mean of `value`, one for each of `by`.

    Args:
        frame: rows of one estimator.
        value: the column of which the mean is taken over all rows of a momentum.
        by: what is told apart, such as "batch_size".
    """
    keys = [*by, "momentum"]
    means = average(frame, value, keys)
    groups = means.groupby([*by], dropna=False)
    places = groups[value].idxmax()
    best = means.loc[places, keys]
    return frame.merge(best, on=keys)


def interval(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
    *,
    average: str | Sequence[str] | None = None,
    scale: float = 1,
    geometric: bool = False,
) -> pd.DataFrame:
    """Average a column over seeds, with the 95% interval of Student's t: one row for each of `by`.

    Args:
        frame: rows with a column `seed`.
        value: the column of which the mean is taken; NaN is left out.
        by: what the rows are told apart by, nothing for one row of all; null keys are kept.
        average: columns over which each seed is averaged first, such as "layer".
        scale: a factor of all values, such as 100 for percent.
        geometric: all means are geometric, over `average` and over seeds, for positive values such as gaps and ratios;
            the mean of ratios is then the ratio of the means.

    Raises:
        UserError: one seed has several rows, which would count as so many seeds.

    Returns:
        The columns `by`, `mean`, `low`, `high` and `n`, and three more: `error` is the standard error over seeds, `log`
        says whether it is one of logarithms, `share` whether the mean is a share of the seeds, as it is of truth values
        that are not averaged over anything else: the interval is exact then (Clopper & Pearson 1934). One seed has no
        interval: NaN.
    """
    averaged = [average] if isinstance(average, str) else list(average or ())
    require_columns(frame, [value, "seed", *by, *averaged])
    require_one_row(frame, [*by, "seed", *averaged])

    values = frame.copy()
    values[value] = scale * frame[value]
    if geometric:
        values[value] = _take_log(values[value])
    if averaged:
        values = _average(values, value, [*by, "seed"])

    is_share = frame[value].dtype == bool and not averaged and scale == 1
    estimate = _estimate_share if is_share else _estimate_mean
    estimates = _estimate_groups(values, value, by, estimate)
    if geometric:
        for bound in _BOUNDS:
            estimates[bound] = np.exp(estimates[bound])
    return estimates.assign(log=geometric, share=is_share)


def _take_log(values: pd.Series) -> pd.Series:
    """Take logarithms, of 0 −∞; refuse a negative value, as a difference has."""
    if (values < 0).any():
        raise UserError(f"a geometric mean of {values.name} has negative values; compare by ratio=True")
    with np.errstate(divide="ignore"):
        return np.log(values)


def _estimate_groups(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
    estimate: Callable[[np.ndarray], _Estimate],
) -> pd.DataFrame:
    """Estimate the mean of a column in each group of rows: a row for each, with `by` and the estimate."""
    rows = []
    with np.errstate(invalid="ignore"):  # a value of 0 has the geometric mean 0 and no interval
        for key, group in list_groups(frame[[*by, value]], by):
            sample = group[value].to_numpy(float)
            estimated = estimate(sample)
            rows.append((*key, *estimated))

    columns = [*by, *_Estimate._fields]
    return pd.DataFrame(rows, columns=columns)


def _estimate_mean(sample: np.ndarray) -> _Estimate:
    """Estimate a mean, with its two-sided Student interval; NaN values are left out."""
    known = sample[~np.isnan(sample)]
    n = len(known)
    if n < 2:
        mean = float(known[0]) if n else np.nan
        return _Estimate(mean, np.nan, np.nan, n, np.nan)

    mean = float(known.mean())
    deviation = float(known.std(ddof=1))
    if (known == known[0]).all():
        deviation = 0.0  # also of logarithms of 0

    error = deviation / n**0.5
    factor = float(special.stdtrit(n - 1, 0.975))  # of Student's t
    half = factor * error
    return _Estimate(mean, mean - half, mean + half, n, error)


def _estimate_share(sample: np.ndarray) -> _Estimate:
    """Estimate a share from values 0 and 1, with its exact binomial interval."""
    from scipy import stats  # takes long to import, and few tables have shares

    n = len(sample)
    share = float(sample.mean())
    if n < 2:
        return _Estimate(share, np.nan, np.nan, n, np.nan)

    hits = int(sample.sum())
    test = stats.binomtest(hits, n)
    low, high = test.proportion_ci(0.95)
    return _Estimate(share, low, high, n, np.nan)


def other_seeds(frame: pd.DataFrame, values: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Average columns over all other seeds: what a prediction may know of a network.

    Args:
        frame: rows with a column `seed`; one without another that agrees in `by` is left out.
        values: columns of which the mean is taken; NaN is left out.
        by: what seeds have in common, such as "panel", "batch_size", "layer".

    Returns:
        The columns `by`, `seed` and `values`.
    """
    require_columns(frame, ["seed", *values, *by])
    keys = [*by, "seed"]
    conditions = frame[keys].drop_duplicates()
    pairs = conditions.merge(frame, on=[*by], suffixes=("", "_other"))
    is_other = pairs["seed"] != pairs["seed_other"]

    groups = pairs[is_other].groupby(keys, dropna=False, sort=False)
    means = groups[[*values]].mean()
    return means.reset_index()
