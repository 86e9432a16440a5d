"""Means of rows that agree in some columns, and their intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames.coverage import check_coverage, check_shares
from bnlab.harness.reporting.frames.networks import RESULTS
from bnlab.harness.reporting.frames.selection import describe_difference, name_value, require_columns
from bnlab.harness.schema import TABLES

NUMBERS = ("mean", "low", "high", "n")
MEASURES = (*NUMBERS, "error", "log", "share")
"""The columns that `interval` adds; the numbers are what is shown of them."""
_IMAGES = ("statistics_split", "split", "shift")  # columns that say which images a row is of
_PARTS = ("layer", "depth", "channel", "position")
_TIMES = ("step", "epoch")
_PLACES = ("seed", "batch_size", "step", "layer", "split", "shift")
_SETTINGS = [c for c in TABLES["runs"].types if c not in ("run", "seed", *RESULTS)]


def average(frame: pd.DataFrame, value: str, by: Sequence[str], *, geometric: bool = False) -> pd.DataFrame:
    """`by` and the mean of `value` over all rows that agree in `by`, as over a network's layers; NaN is left out.

    Args:
        frame: any rows.
        value: the column of which the mean is taken.
        by: what is told apart, such as "batch_size", "seed"; null keys are kept.
        geometric: the geometric mean, for positive values such as ratios.

    Raises:
        UserError: a column is missing.
    """
    require_columns(frame, [value, *by])
    values = frame.assign(**{value: _log(frame[value])}) if geometric else frame
    means = _average_groups(values, value, by)
    return means.assign(**{value: np.exp(means[value])}) if geometric else means


def best_on_average(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows with one momentum: for each combination of `by` that with the highest mean of `value`, as an accuracy.

    Args:
        frame: rows of one estimator.
        value: the column of which the mean is taken, over all rows that agree in `by` and momentum.
        by: what has a momentum of its own, such as "batch_size"; null keys are kept.

    Raises:
        UserError: a column is missing, or some seeds lack a momentum that others have, or some momenta a step, layer
            or the like.
    """
    require_columns(frame, [value, "momentum", *by])
    if "seed" in frame:
        check_coverage(frame, by, ["seed"], ["momentum"])
    check_coverage(frame, by, ["momentum"], [c for c in _PLACES if c in frame and c not in by])
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
        UserError: a column is missing, a mean would be one over several settings or of several images, or seeds lack
            some of what others are averaged over.
        ValueError: several rows of one seed, which would count as so many seeds; truth values with a scale.
    """
    over = list_columns(average)
    require_columns(frame, [value, "seed", *by, *over])
    share = frame[value].dtype == bool and not over  # a mean over layers is no longer true or false
    if share and scale != 1:
        raise ValueError(f"interval: {value} is true or false, and its mean a share; leave scale at 1")
    settings = () if {*_SETTINGS} & {*over} else _SETTINGS  # others follow from one that is averaged over
    check_mixed(frame, by, (*_IMAGES, *settings), over)
    numbers = scale * frame[value]
    values = frame.assign(**{value: _log(numbers) if geometric else numbers})
    with np.errstate(divide="ignore", invalid="ignore"):  # a value of 0 has mean 0 and no interval
        _check_seeds(values, [*by, "seed", *over])
        if over:
            _check_settings(values.dropna(subset=[value]), by, over)
            values = _average_groups(values, value, [*by, "seed"])
        estimate = _estimate_share if share else _estimate
        estimates = [(*key, *estimate(group.to_numpy(float))) for key, group in _split(values, value, by)]
    found = pd.DataFrame(estimates, columns=[*by, "mean", "low", "high", "n", "error"])
    if geometric:
        found[["mean", "low", "high"]] = np.exp(found[["mean", "low", "high"]])
    return found.assign(log=geometric, share=share)


def other_seeds(frame: pd.DataFrame, values: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """`by`, `seed` and the means of `values` over all other seeds: what a prediction may know of a network.

    Args:
        frame: rows with a column `seed`.
        values: columns of which the mean is taken.
        by: what seeds have in common, such as "panel", "batch_size", "layer".

    Raises:
        UserError: a column is missing, or some rows have no other seed, or seeds lack steps or layers of others.
    """
    require_columns(frame, ["seed", *values, *by])
    seeds = frame.groupby(list(by), dropna=False, sort=False)["seed"].agg(["nunique", "first"])
    lonely = seeds[seeds["nunique"] == 1]
    if len(lonely):
        where = ", ".join(name_value(key, lonely.reset_index()[key].iloc[0]) for key in by)
        raise UserError(
            f"the prediction is made from other seeds, and {where} has only seed {lonely['first'].iloc[0]}; "
            "sweep several, such as seed=0,1"
        )
    if kept := [c for c in ("step", "layer", "estimator", "momentum") if c in frame and c not in by]:
        check_coverage(frame, by, ["seed"], kept)
    pairs = frame[[*by, "seed"]].drop_duplicates().merge(frame, on=list(by), suffixes=("", "_other"))
    others = pairs[pairs["seed"] != pairs["seed_other"]]
    return others.groupby([*by, "seed"], dropna=False, sort=False)[list(values)].mean().reset_index()


def _log(values: pd.Series) -> pd.Series:
    """Logarithms, of 0 −∞; ValueError of a negative value, which would be left out as NaN is."""
    if (values < 0).any():
        raise ValueError(
            f"a geometric mean of {values.name} would leave out its negative values, such as {values.min():.3g}; leave "
            "out geometric=True, or compare by ratio=True"
        )
    with np.errstate(divide="ignore"):
        return np.log(values)


def _average_groups(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """`by` and the mean of `value` for each combination of these, null ones too."""
    return frame.groupby(list(by), dropna=False, sort=False)[value].mean().reset_index()


def _split(frame: pd.DataFrame, value: str, by: Sequence[str]) -> Iterable[tuple[Any, pd.Series]]:
    """The values of a column for each combination of `by`; all of them, for (), where there is none."""
    keys = [frame[key] for key in by]
    return frame[value].groupby(keys, dropna=False, sort=False) if keys else [((), frame[value])]


def _estimate(values: np.ndarray) -> tuple[float, float, float, int, float]:
    """Mean, bounds of the two-sided 95% Student interval, n and standard error; NaN values are left out."""
    values = values[~np.isnan(values)]
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    error = float(values.std(ddof=1)) / n**0.5 if n > 1 else np.nan
    half = float(stats.t.ppf(0.975, n - 1)) * error if n > 1 else np.nan
    return mean, mean - half, mean + half, n, error


def _estimate_share(values: np.ndarray) -> tuple[float, float, float, int, float]:
    """As `_estimate`, of values 0 and 1."""
    n = len(values)
    bounds = stats.binomtest(int(values.sum()), n).proportion_ci(0.95) if n > 1 else (np.nan, np.nan)
    return float(values.mean()), *bounds, n, np.nan


def list_columns(names: str | Sequence[str] | None) -> list[str]:
    """The names of what may be one column, several or none."""
    return [names] if isinstance(names, str) else list(names or ())


def check_mixed(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str], over: Sequence[str]) -> None:
    """UserError if rows that agree in `by` differ in one of the columns: some seeds may have its values alone.

    Args:
        frame: any rows.
        by: what they are told apart by.
        columns: those in which they must agree, where they are there and neither in `by` nor in `over`.
        over: what each seed is averaged over.
    """
    kept = {*by, *over}
    mixed = [c for c in columns if c in frame and c not in kept and frame[c].nunique() > 1]
    for column in mixed:
        for key, found in _split(frame, column, by):
            if found.nunique() > 1:
                where = ", ".join(name_value(*pair) for pair in zip(by, key, strict=True))
                values = ", ".join(map(str, found.dropna().unique()))
                raise UserError(
                    f"an average over seeds would mix rows of several values of {column} "
                    f"({values}{'; ' * bool(where)}{where}): select one, tell them apart by it, or "
                    "sweep one under a name=... of its own"
                )


def _check_settings(frame: pd.DataFrame, by: Sequence[str], over: Sequence[str]) -> None:
    """UserError if one average would be over fewer settings than another that stands beside it.

    Averages of seeds that agree in `by` stand side by side, those of a network's estimators, and those of other
    networks, whose steps are compared as shares of the training. Parts of a network, such as a layer, may be missing:
    what is asked may not have an answer in each.
    """
    settings = [column for column in over if column not in _PARTS]
    if not settings:
        return
    check_coverage(frame, by, ["seed"], settings)
    kinds = [column for column in ("estimator", "momentum") if column in by]
    if kinds:
        check_coverage(frame, ["seed", *(key for key in by if key not in kinds)], kinds, settings)
    if not (beside := [column for column in by if column not in ("panel", *kinds)]):
        return
    same = [column for column in by if column not in beside]
    if others := [column for column in settings if column not in _TIMES]:
        check_coverage(frame, same, beside, others)
    if {"step", "steps"} <= {*frame} and {*_TIMES} & {*settings}:
        check_shares(frame, same, beside)


def _check_seeds(frame: pd.DataFrame, keys: list[str]) -> None:
    """ValueError if several rows agree in the keys, which end with the seed and what is averaged within it."""
    doubled = frame.duplicated(keys)
    if doubled.any():
        first = ", ".join(name_value(key, frame.loc[doubled, key].iloc[0]) for key in keys)
        raise ValueError(
            f"interval: several rows of one seed ({first}){describe_difference(frame, keys)}; select or sweep "
            "one, or average over layers and the like"
        )
