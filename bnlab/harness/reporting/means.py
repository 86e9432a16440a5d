"""Means over layers and seeds with their intervals; checks that no column is missing and no row counts twice.

Gaps over the layers of a network have one definition, for every figure, claim, notebook and caller
(`bnlab.harness.layer_average`, which says why the first layer stands apart):

- a gap over layers is the root mean square over the deeper layers, and the first layer stands beside it
  (`gap_over_layers`); where one number is wanted, it is the former (`average_gap`);
- a ratio is taken layer by layer, and averaged geometrically over the deeper layers
  (`frames.RATIO_OVER_LAYERS`);
- a claim that a gap is small is about the layer with the largest one (`select_largest_gap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from bnlab.harness.errors import UserError, suggest
from bnlab.harness.layer_average import average_layers, average_networks
from bnlab.harness.reporting.wording import list_differences, name_row

NUMBERS = ("mean", "low", "high", "n")
"""The columns of `interval` that are shown."""
MEASURES = (*NUMBERS, "error", "log", "share")
"""All columns that `interval` adds."""
SHARES = ("accuracy", "new_accuracy", "old_accuracy", "ece", "disagreement", "tested", "hits")
"""Columns of which a value lies between 0 and 1, unless it was compared; so do truth values of any column."""
COMPARED = "is_compared"
"""A column of rows that were compared, see `frames.paired`."""
# What tells apart the statistics that a network has at one step; a frame has some of these columns.
_STATISTICS = ("run", "panel", "line", "step", "estimator", "momentum", "statistics_split", "last")
# Columns of real numbers that are no measured values.
_REAL_KEYS = ("momentum", "dose", "size", "epochs", "freeze_at")


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
    # Measured values differ in nearly all rows, and would not say which key tells the rows apart.
    candidates = [str(column) for column in same if same[column].dtype != float or _is_key(str(column))]
    differing = list_differences(same, candidates) or "their numbers only"
    # A name is a hash of the settings as they were given, so that one training can have two names.
    others = list_differences(same, [column for column in candidates if column != "run"])
    if "run" in same and not others and same["run"].nunique() > 1:
        first, second, *_ = same["run"].unique()
        raise UserError(
            f"{first} and {second} are trained alike (one by epochs=2, say, and one by the same number of steps=), and "
            "would count as two seeds;\ntake one out of the tables, with the sweep's name: bnlab runs rm name=NAME "
            f"run={first}"
        )
    raise UserError(
        f"several rows of {name_row(same, keys)}, which differ in {differing};\n"
        "tell them apart (by=..., or in the panel's name), select one, or average over them"
    )


def _is_key(column: str) -> bool:
    """Find out if a column of real numbers is a key, one of a few or a setting such as `optimizer.lr`."""
    return column in _REAL_KEYS or "." in column


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
    # Grouping has dropped this column, without which `interval` would cut differences off at 0.
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
        other shares, as accuracies are, end at 0 and 1. One seed has no interval, and neither have seeds of the same
        value, whose spread is not known: NaN.
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

    # Without `by`, the index is only the number that `_group` has made up.
    statistics = _group(sample, by)[value].agg(["mean", "std", "count", "nunique"]).reset_index(drop=not by)
    mean = statistics["mean"]
    n = statistics["count"]
    # Of equal values, as of logarithms of 0 or of differences of equal ones, the deviation may be rounding, which a
    # test would take for spread.
    has_spread = (statistics["nunique"] != 1) & ~(statistics["std"] <= 1e-12 * mean.abs().clip(lower=1e-3))
    deviation = statistics["std"].where(has_spread, 0.0)
    error = (deviation / n**0.5).where(n > 1)
    # Student's t by `scipy.special`: importing `scipy.stats` would take half a second of each report.
    # Equal values, as two seeds of a small test set soon have, do not show how far apart seeds can be: an interval of
    # width 0 would look certain.
    half = special.stdtrit(n - 1, 0.975) * error.where(error > 0)
    low = mean - half
    high = mean + half

    if is_share:
        # The mean of truth values is a count divided by n, up to rounding.
        hits = (n * mean).round()
        # The formula has no lower end if none are hits, and no upper end if all are.
        low = special.betaincinv(hits, n - hits + 1, 0.025)
        high = special.betaincinv(hits + 1, n - hits, 0.975)
        low = low.where(hits > 0, 0.0).where(n > 1)
        high = high.where(hits < n, 1.0).where(n > 1)
        # An exact interval has no standard error.
        error = error * np.nan
    if geometric:
        mean = np.exp(mean)
        low = np.exp(low)
        high = np.exp(high)
    if _has_shares(frame, value):
        # The scale may be negative: shares times −100 lie between −100 and 0.
        least, most = sorted((0.0, float(scale)))
        low = low.clip(least, most)
        high = high.clip(least, most)

    bounds = {"mean": mean, "low": low, "high": high}
    return statistics[[*by]].assign(**bounds, n=n, error=error, log=geometric, share=is_share)


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
    # A value of 0 makes a geometric mean 0, as it should; numpy would warn of the logarithm.
    with np.errstate(divide="ignore"):
        return np.log(values)


def average_gap(gaps: pd.DataFrame, value: str = "mean_gap") -> pd.DataFrame:
    """Average the gap over the layers of each network, as `bnlab report` draws it.

    Args:
        gaps: rows of the table `gaps`, one for each layer, as `bnlab.harness.load` gives them; all of them, or some.
        value: the column with the gap: "mean_gap", in standard deviations, or another one of the table.

    Raises:
        UserError: a column is missing, or several rows are of one layer.

    Returns:
        One row for each network, step and estimator with its momentum, in the order of `gaps`: the columns run, step,
        estimator, momentum, statistics_split and epoch, as far as `gaps` has them, and `value`. This is the root mean
        square over the deeper layers, the squares divided by their number: the first layer's input is
        standardized by hand, so that it has hardly any gap. A network with a single layer has the gap of that one.

    >>> gaps = pd.DataFrame({"run": "a", "step": 9, "depth": [1, 2, 3], "mean_gap": [0.5, 3.0, 4.0]})
    >>> average_gap(gaps).round(3)
      run  step  mean_gap
    0   a     9     3.536
    """
    keys = _list_statistics(gaps, [value])
    chosen = average_networks(gaps, value, keys)

    columns = [*keys]
    if "epoch" in chosen:
        columns.append("epoch")
    columns.append(value)
    return chosen[columns].reset_index(drop=True)


def gap_over_layers(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Average a gap over the layers of each network, step and estimator.

    Args:
        frame: rows of `rows`, one for each layer, with `depth` counted from 1.
        value: the column with the gap.

    Raises:
        UserError: several rows of one layer, which would be averaged as if they were layers.

    Returns:
        Two rows for each network, step and estimator, told apart by the new column `layers`: `DEEPER` with the root
        mean square over the deeper layers, and `FIRST` with the gap of the first layer. Rows of several
        channels of a layer are averaged alike. Other measured columns are those of one of the layers.
    """
    keys = _list_statistics(frame, [value])
    averaged = average_layers(frame, value, keys)
    return averaged.drop(columns=["depth", "layer"], errors="ignore")


def select_largest_gap(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Find the layer with the largest gap of each network, step and estimator, the first layer included.

    Args:
        frame: rows of `rows`, one for each layer.
        value: the column with the gap; rows without a value are left out.
        by: what a claim tells apart, such as "panel", "batch_size".

    Returns:
        One row for each network, step and estimator, with a new column `largest`: the depth of the layer that most
        networks of the same `by` have, as `3`, or `3 (12 of 15)` where some have another one.
    """
    keys = _list_statistics(frame, [value, *by])
    # Rows that were put together may share a label, and `loc` would select all that do.
    measured = frame.dropna(subset=value)
    measured = measured.reset_index(drop=True)
    groups = measured.groupby(keys, dropna=False, sort=False)
    labels = groups[value].idxmax()
    largest = measured.loc[labels]

    def name_commonest(depths: pd.Series) -> str:
        counts = depths.value_counts()
        depth = counts.index[0]
        count = counts.iloc[0]
        if count == len(depths):
            return str(depth)
        return f"{depth} ({count} of {len(depths)})"

    conditions = largest.groupby([*by], dropna=False, sort=False)
    names = conditions["depth"].transform(name_commonest)
    return largest.assign(largest=names)


def _list_statistics(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """List what tells statistics apart, of a frame that has one row for each of them and layer, and these columns."""
    require_columns(frame, [*columns, "depth"])
    keys = [key for key in _STATISTICS if key in frame]
    row_keys = [*keys, "depth"]
    # Some tables have several rows for a layer, one for each channel.
    if "channel" in frame:
        row_keys.append("channel")
    require_one_row(frame, row_keys)
    return keys
