"""Means over layers and seeds, with their intervals, and values beside those of a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames.selection import Tables, lowest, require_columns, require_one_row, rows, select

Score = Callable[[Tables], pd.DataFrame]
NUMBERS = ("mean", "low", "high", "n")
MEASURES = (*NUMBERS, "error", "log", "share")
"""The columns that `interval` adds; the numbers are what is shown of them."""
_PLACES = ("step", "panel", "layer", "channel", "split", "shift")
_DIFFERING = {
    "estimator": ("estimator", "momentum"),
    "panel": ("panel", "step"),
    "depth": ("depth", "layer"),
    "batch_size": ("batch_size", "step"),
}
"""By the column along which values are compared: the columns that differ with it."""


def average(frame: pd.DataFrame, value: str, by: Sequence[str], *, geometric: bool = False) -> pd.DataFrame:
    """`by` and the mean of `value` over all rows that agree in `by`, as over a network's layers; NaN is left out.

    Args:
        frame: any rows.
        value: the column of which the mean is taken.
        by: what is told apart, such as "batch_size", "seed"; null keys are kept.
        geometric: the geometric mean, for positive values such as ratios.
    """
    require_columns(frame, [value, *by])
    values = frame.assign(**{value: _take_log(frame[value])}) if geometric else frame
    means = values.groupby(list(by), dropna=False, sort=False)[value].mean().reset_index()
    return means.assign(**{value: np.exp(means[value])}) if geometric else means


def best_on_average(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows of one estimator with the momentum that has the highest mean of `value`, one for each of `by`."""
    means = average(frame, value, (*by, "momentum"))
    best = means.loc[means.groupby([*by], dropna=False)[value].idxmax(), [*by, "momentum"]]
    return frame.merge(best, on=[*by, "momentum"])


def interval(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
    *,
    average: str | Sequence[str] | None = None,
    scale: float = 1,
    geometric: bool = False,
) -> pd.DataFrame:
    """`by` and `mean`, `low`, `high` (95%, Student), `n` of `value` over seeds: one row for each of `by`.

    Three more columns: `error` is the standard error over seeds, `log` says whether it is one of logarithms, `share`
    whether the mean is a share of the seeds, as it is of truth values that are not averaged over anything else: the
    interval is exact then (Clopper & Pearson 1934). NaN values are left out; one seed has no interval: NaN.

    Args:
        frame: rows with a column `seed`.
        value: the column of which the mean is taken.
        by: what the rows are told apart by, nothing for one row of all; null keys are kept.
        average: columns over which each seed is averaged first, such as "layer".
        scale: a factor of all values, such as 100 for percent.
        geometric: all means are geometric, over `average` and over seeds, for positive values such as gaps and ratios;
            the mean of ratios is then the ratio of the means.

    Raises:
        UserError: one seed has several rows, which would count as so many seeds.
    """
    over = [average] if isinstance(average, str) else list(average or ())
    require_columns(frame, [value, "seed", *by, *over])
    require_one_row(frame, [*by, "seed", *over])
    share = frame[value].dtype == bool and not over and scale == 1
    numbers = scale * frame[value]
    values = frame.assign(**{value: _take_log(numbers) if geometric else numbers})
    if over:
        values = values.groupby([*by, "seed"], dropna=False, sort=False)[value].mean().reset_index()
    groups = values.groupby(list(by), dropna=False, sort=False) if by else [((), values)]
    estimate = _estimate_share if share else _estimate
    with np.errstate(invalid="ignore"):  # a value of 0 has the geometric mean 0 and no interval
        estimates = [(*key, *estimate(group[value].to_numpy(float))) for key, group in groups]
    found = pd.DataFrame(estimates, columns=[*by, "mean", "low", "high", "n", "error"])
    if geometric:
        found[["mean", "low", "high"]] = np.exp(found[["mean", "low", "high"]])
    return found.assign(log=geometric, share=share)


def _take_log(values: pd.Series) -> pd.Series:
    """Logarithms, of 0 −∞; UserError of a negative value, as a difference has."""
    if (values < 0).any():
        raise UserError(f"a geometric mean of {values.name} has negative values; compare by ratio=True")
    with np.errstate(divide="ignore"):
        return np.log(values)


def _estimate(values: np.ndarray) -> tuple[float, float, float, int, float]:
    """Mean, bounds of the two-sided 95% Student interval, n and standard error; NaN values are left out."""
    values = values[~np.isnan(values)]
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    error = float(values.std(ddof=1)) / n**0.5 if n > 1 else np.nan
    if n > 1 and (values == values[0]).all():
        error = 0.0  # also of logarithms of 0
    half = float(stats.t.ppf(0.975, n - 1)) * error if n > 1 else np.nan
    return mean, mean - half, mean + half, n, error


def _estimate_share(values: np.ndarray) -> tuple[float, float, float, int, float]:
    """As `_estimate`, of values 0 and 1."""
    n = len(values)
    bounds = stats.binomtest(int(values.sum()), n).proportion_ci(0.95) if n > 1 else (np.nan, np.nan)
    return float(values.mean()), *bounds, n, np.nan


def other_seeds(frame: pd.DataFrame, values: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """`by`, `seed` and the means of `values` over all other seeds: what a prediction may know of a network.

    Args:
        frame: rows with a column `seed`; one without another that agrees in `by` is left out.
        values: columns of which the mean is taken; NaN is left out.
        by: what seeds have in common, such as "panel", "batch_size", "layer".
    """
    require_columns(frame, ["seed", *values, *by])
    pairs = frame[[*by, "seed"]].drop_duplicates().merge(frame, on=list(by), suffixes=("", "_other"))
    others = pairs[pairs["seed"] != pairs["seed_other"]]
    return others.groupby([*by, "seed"], dropna=False, sort=False)[list(values)].mean().reset_index()


def paired(
    frame: pd.DataFrame,
    value: str,
    against: Any = "exact",
    *,
    along: str = "estimator",
    matching: Sequence[str] = ("run",),
    ratio: bool = False,
) -> pd.DataFrame:
    """All rows but the reference's; `value` compared with that of the reference at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, channels, splits or panels, these agree as well, and where others
            than estimators are compared, estimator and momentum too.
        value: the column that is replaced by its difference to the reference; NaN where one of the two is.
        against: the estimator that is the reference, on the training split if it is there on several; or another value
            of `along`. Rows without a reference at their place are left out.
        along: the column of which `against` is a value: estimators; or a `size` of batches, a layer by its `depth`, a
            share of the training by its `panel`; a setting of the training, with `matching`.
        matching: columns in which two rows agree that are compared, always: with "momentum" each momentum of an
            estimator is compared with the same one of the reference. Networks that were trained with other settings
            agree in ("seed",), or in ("seed", "batch_size") where they also differ in what the comparison is not about.
        ratio: divide by the reference instead of subtracting it.

    Raises:
        UserError: the reference has several rows for a network and step, or other seeds than what is compared with it;
            values of a column are compared in which rows should agree.
    """
    require_columns(frame, [value, along, *matching])
    if along in matching:
        raise UserError(f"values of {along} are compared, so that they cannot agree; leave {along} out of matching")
    keys = _list_matched(frame, along, matching)
    is_reference = frame[along] == against
    if along == "estimator" and "statistics_split" in frame:
        of_training = is_reference & frame["statistics_split"].eq("train")
        is_reference = of_training if of_training.any() else is_reference
    known, others = frame[is_reference], frame[~is_reference]
    require_one_row(known, keys)
    alone = {*known["seed"]} ^ {*others["seed"]} if len(known) and len(others) else ()
    if alone:
        raise UserError(f"seed {min(alone)} has rows of {along} {against} only, or none; pairs need both: sweep it")
    compared = others.merge(known[[*keys, value]], on=keys, suffixes=("", " of the reference"))
    expected = compared.pop(f"{value} of the reference")
    return compared.assign(**{value: compared[value] / expected if ratio else compared[value] - expected})


def _list_matched(frame: pd.DataFrame, along: str, matching: Sequence[str]) -> list[str]:
    """List the columns in which two rows agree that are compared: what is asked for, and places that do not differ."""
    differing = _DIFFERING.get(along, (along,))
    places = [key for key in (*_PLACES, "estimator", "momentum") if key in frame and key not in differing]
    return list(dict.fromkeys([*matching, *places]))


def over_best(frame: pd.DataFrame, value: str, estimator: str = "ema") -> pd.DataFrame:
    """All rows; `value` over the smallest that this estimator has with any momentum at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, splits or panels, these agree as well.
        value: the column that becomes a ratio, such as a gap; the best momentum in hindsight has 1.
        estimator: the one of which the best momentum is the reference; rows for which it has none are left out.
    """
    best = lowest(select(frame, estimator=estimator), value, [key for key in ("run", *_PLACES) if key in frame])
    return paired(pd.concat([frame, best.assign(estimator="best")]), value, against="best", ratio=True)


def score(
    source: str | Score,
    value: str,
    by: Sequence[str],
    *,
    at: float | Sequence[float] = (),
    against: Any = None,
    along: str = "estimator",
    matching: Sequence[str] = ("run",),
    ratio: bool = False,
    average: str | Sequence[str] | None = None,
    scale: float = 1,
    geometric: bool = False,
    **wanted: Any,
) -> Score:
    """A score of one value: `rows`, the comparison with a reference if there is one, `interval`.

    Args:
        source: the name of a table, of which `rows` are taken, or a function of the tables that gives other rows.
        at: shares of the training, of a table, see `rows`; its networks may differ in the settings among `by`, or else
            in their batch size.
        value, by, average, scale, geometric: see `interval`.
        against, along, matching, ratio: the reference, see `paired`; it need not be among the wanted.
        wanted: see `select`; with a reference, values of `along`, and of `momentum` where that is the estimator, choose
            among the rows that have been compared with it.

    Returns:
        A function of the tables that returns the frame of `interval`.
    """
    later = () if against is None else (along, "momentum") if along == "estimator" else (along,)
    compared = {key: wanted.pop(key) for key in later if key in wanted}

    def compute(tables: Tables) -> pd.DataFrame:
        if isinstance(source, str):
            settings = [key for key in by if key not in tables.get(source, ()) and key != "panel"]
            frame = rows(tables, source, at, settings or ["batch_size"], **wanted)
        else:
            frame = select(source(tables), **wanted)
        if against is not None:
            frame = select(paired(frame, value, against, along=along, matching=matching, ratio=ratio), **compared)
        return interval(frame, value, by, average=average, scale=scale, geometric=geometric)

    return compute
