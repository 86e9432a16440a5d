"""Means over layers and seeds with their intervals; checks that no column is missing and no row counts twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from bnlab.harness.errors import UserError, suggest
from bnlab.harness.reporting.wording import list_differences, name_row

NUMBERS = ("mean", "low", "high", "n")
"""The columns of `interval` that are shown."""
MEASURES = (*NUMBERS, "error", "log", "share")
"""All columns that `interval` adds."""
SHARES = ("accuracy", "new_accuracy", "old_accuracy", "ece", "disagreement", "tested", "hits")
"""Columns of which a value lies between 0 and 1, unless it was compared; so do truth values of any column."""
COMPARED = "is_compared"
"""A column of rows that were compared, see `frames.paired`."""
_REAL_KEYS = ("momentum", "dose", "size")  # columns of real numbers that are no measured values


def require_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse columns that are missing: name the first of them, and one that is called nearly so."""
    for column in columns:
        if column in frame:
            continue
        known = [str(one) for one in frame]
        raise UserError(f"no column {column!r}: {suggest(column, known)}")


def require_one_row(frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse several rows that agree in the keys, which would be drawn at one place or count as so many seeds."""
    doubled = frame[frame.duplicated(keys, keep=False)]
    if doubled.empty:
        return

    groups = doubled.groupby([*keys], dropna=False, sort=False)
    same = doubled[groups.ngroup() == 0]
    places = [str(column) for column in same if same[column].dtype != float or column in _REAL_KEYS]
    differing = list_differences(same, places) or "their numbers only"
    raise UserError(
        f"several rows of {name_row(same, keys)}, which differ in {differing};\n"
        "tell them apart (by=..., or in the panel's name), select one, or average over them"
    )


def average(frame: pd.DataFrame, value: str, by: Sequence[str], *, geometric: bool = False) -> pd.DataFrame:
    """Average a column over all rows that agree in `by`, as over a network's layers; NaN is left out.

    Args:
        frame: any rows.
        value: the column of which the mean is taken.
        by: what is told apart, such as "batch_size", "seed"; null keys are kept.
        geometric: the geometric mean, for positive values such as ratios.

    Returns:
        The columns `by` and `value`; of rows that were compared also the one that says so.
    """
    require_columns(frame, [value, *by])
    if geometric:
        frame = frame.assign(**{value: _take_log(frame[value])})
    means = _group(frame, by)[value].mean().reset_index()
    if geometric:
        means[value] = np.exp(means[value])
    if COMPARED in frame:
        means[COMPARED] = True
    return means


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
        that are not averaged over anything else: the interval is exact then (Clopper & Pearson 1934). Intervals of
        other shares, as accuracies are, end at 0 and 1. One seed has no interval: NaN.
    """
    averaged = [average] if isinstance(average, str) else list(average or ())
    require_columns(frame, [value, "seed", *by, *averaged])
    require_one_row(frame, [*by, "seed", *averaged])

    is_share = frame[value].dtype == bool and not averaged and scale == 1
    values = scale * frame[value].astype(float)
    if geometric:
        values = _take_log(values)
    sample = frame.assign(**{value: values})
    if averaged:
        sample = _group(sample, [*by, "seed"])[value].mean().reset_index()

    found = _group(sample, by)[value].agg(["mean", "std", "count", "nunique"]).reset_index(drop=not by)
    mean = found["mean"]
    n = found["count"]
    deviation = found["std"].where(found["nunique"] != 1, 0.0)  # also of logarithms of 0
    error = (deviation / n**0.5).where(n > 1)
    half = special.stdtrit(n - 1, 0.975) * error  # of Student's t
    low = mean - half
    high = mean + half
    if is_share:
        hits = (n * mean).round()
        low = special.betaincinv(hits, n - hits + 1, 0.025)
        high = special.betaincinv(hits + 1, n - hits, 0.975)
        low = low.where(hits > 0, 0.0).where(n > 1)
        high = high.where(hits < n, 1.0).where(n > 1)
        error = error * np.nan
    if geometric:
        mean = np.exp(mean)
        low = np.exp(low)
        high = np.exp(high)
    if _has_shares(frame, value):
        least, most = sorted((0.0, float(scale)))
        low = low.clip(least, most)
        high = high.clip(least, most)
    bounds = {"mean": mean, "low": low, "high": high}
    return found[[*by]].assign(**bounds, n=n, error=error, log=geometric, share=is_share)


def _has_shares(frame: pd.DataFrame, value: str) -> bool:
    """Find out if a column has shares, by its name; a user's own column of this name may be in percent."""
    is_named = value in SHARES or frame[value].dtype == bool
    is_between = frame[value].dropna().between(0, 1).all()
    return bool(is_named and is_between and COMPARED not in frame)


def _group(frame: pd.DataFrame, by: Sequence[str]) -> Any:
    """Group rows by columns, null among their values; into one group without any."""
    keys: Any = [*by] or np.zeros(len(frame))
    return frame.groupby(keys, dropna=False, sort=False)


def _take_log(values: pd.Series) -> pd.Series:
    """Take logarithms, of 0 −∞; refuse a negative value, as a difference has."""
    if (values < 0).any():
        raise UserError(f"a geometric mean of {values.name} has negative values; compare by ratio=True")
    with np.errstate(divide="ignore"):
        return np.log(values)


def best_on_average(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Select the rows of the momentum that has the highest mean of `value`, one for each of `by`."""
    keys = [*by, "momentum"]
    means = average(frame, value, keys)
    places = means.groupby([*by], dropna=False)[value].idxmax()
    return frame.merge(means.loc[places, keys], on=keys)


def other_seeds(frame: pd.DataFrame, values: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Average columns over all other seeds: what a prediction may know of a network.

    Args:
        frame: rows with a column `seed`; one without another that agrees in `by` is left out.
        values: columns of which the mean is taken; NaN is left out.
        by: what seeds have in common, such as "panel", "batch_size", "layer".

    Returns:
        The columns `by`, `seed` and `values`.
    """
    keys = [*by, "seed"]
    require_columns(frame, [*values, *keys])
    conditions = frame[keys].drop_duplicates()
    pairs = conditions.merge(frame, on=[*by], suffixes=("", "_other"))
    is_other = pairs["seed"] != pairs["seed_other"]
    groups = _group(pairs[is_other], keys)
    means = groups[[*values]].mean()
    return means.reset_index()


def locate_minimum(frame: pd.DataFrame, x: str, y: str, by: Sequence[str]) -> pd.DataFrame:
    """Locate the `x` at which `y` is smallest, between the values of `x` that were swept.

    It is the vertex of the parabola through the smallest measured value and its two neighbours, in the logarithms of
    both columns. If the smallest value is the first or the last of the sweep, it is that end.

    Args:
        frame: rows with positive `x` and `y`; rows where `y` is NaN are left out.
        x: the column that was swept, such as "momentum".
        y: the column whose minimum is wanted, such as "mean_gap".
        by: columns whose combinations of values are separate sweeps; each has at most one row for each `x`.

    Returns:
        One row for each combination that has values: `by`, `x` at the minimum, and `at_end`, whether that is an end of
        the sweep.
    """
    require_columns(frame, [x, y, *by])
    require_one_row(frame, [*by, x])
    ordered = frame.dropna(subset=y).sort_values(x, kind="stable")

    minima = []
    for key, sweep in _group(ordered, by):
        swept = sweep[x].to_numpy(float)
        values = sweep[y].to_numpy(float)
        log_x = np.log(swept)
        log_y = np.log(values)
        lowest = int(log_y.argmin())
        last = len(sweep) - 1
        at_end = lowest in (0, last)
        minimum = log_x[lowest]
        if not at_end:
            near = slice(lowest - 1, lowest + 2)
            distances = log_x[near] - minimum
            curvature, slope, _ = np.polyfit(distances, log_y[near], 2)
            minimum -= slope / (2 * curvature)
        place = float(np.exp(minimum))
        minima.append((*key, place, at_end))
    return pd.DataFrame(minima, columns=[*by, x, "at_end"])
