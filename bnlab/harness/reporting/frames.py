"""Rows of tables with their networks' settings, differences to a reference, intervals over seeds. No drawing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bnlab.harness.errors import UserError

# Columns of `runs` that are results, or say the same as others; all other columns are settings.
RESULTS = ("status", "train_seconds", "final_loss", "last_step", "settings", "versions", "device", "threads")
MEASURES = ("mean", "low", "high", "n", "error", "log")
"""The columns that `interval` adds."""


def rows(
    tables: Mapping[str, pd.DataFrame],
    table: str,
    shares: Sequence[float] = (),
    by: Sequence[str] = ("batch_size",),
    **wanted: Any,
) -> pd.DataFrame:
    """Rows of a table with their networks' settings, and a column `panel`.

    Args:
        tables: the tables of an experiment, `runs` among them.
        table: the name of the table.
        shares: shares of the training, 0 to 1, each a panel. Of each network the measured step nearest to the share,
            if it is within 2% of the training or half a step. Without shares all steps, a panel for each of `by`.
        by: settings in which the networks differ beside the seed, dotted where nested (`model.depth`).
        wanted: a value, or a tuple of values, for columns of the table or settings; None is null. See `select`.

    Raises:
        UserError: a column is missing, or networks agree in `by` and seed, which an average over seeds would mix.
    """
    frame, runs = tables[table], tables["runs"]
    settings = runs[[c for c in runs if c == "run" or c not in frame]]
    joined = select(frame.merge(settings, on="run"), **wanted)
    _check_networks(runs[runs["run"].isin(joined["run"])], by)
    return _at_shares(joined, shares) if shares else _panel_for_each(joined, by)


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows whose columns have the wanted values: one, or any of a tuple; None is null.

    Raises:
        UserError: there is no such column.
    """
    for column, value in wanted.items():
        _require(frame, [column])
        values = list(value) if isinstance(value, tuple | list) else [value]
        matches = frame[column].isin([v for v in values if v is not None])
        frame = frame[matches | frame[column].isna() if None in values else matches]
    return frame


def paired(frame: pd.DataFrame, value: str, against: str = "exact") -> pd.DataFrame:
    """The rows of all other estimators; `value` minus that of the reference at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, splits or panels, these agree as well.
        value: the column that is replaced by the difference.
        against: the estimator that is the reference; rows for which it has none are left out.

    Raises:
        UserError: there is no such column.
        ValueError: the reference has several rows for a network and step, as one of several momenta does.
    """
    _require(frame, [value])
    keys = [key for key in ("run", "step", "panel", "layer", "split", "shift") if key in frame]
    reference = frame[frame["estimator"] == against].set_index(keys)[value]
    if not reference.index.is_unique:
        raise ValueError(f"paired: {against!r} has several rows for a network and step; select one, as one momentum")
    others = frame[frame["estimator"] != against]
    index = pd.MultiIndex.from_frame(others[keys])
    differences = others.assign(**{value: others[value] - reference.reindex(index).to_numpy()})
    return differences[index.isin(reference.index)]


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

    Besides, `error` is the standard error over seeds, and `log` says that it is one of logarithms. NaN values are left
    out; one seed has no interval: NaN.

    Args:
        frame: rows with a column `seed`.
        value: the column of which the mean is taken.
        by: what the rows are told apart by; null keys are kept.
        average: columns over which each seed is averaged first, such as "layer".
        scale: a factor of all values, such as 100 for percent.
        geometric: mean and interval over seeds of logarithms, for positive values that are read on a logarithmic axis.

    Raises:
        UserError: a column is missing.
        ValueError: several rows of one seed, which would count as so many seeds.
    """
    over = [average] if isinstance(average, str) else list(average or ())
    _require(frame, [value, "seed", *by, *over])
    values = frame.assign(**{value: scale * frame[value]})
    _check_seeds(values, [*by, "seed", *over])
    if over:
        values = values.groupby([*by, "seed"], dropna=False, sort=False)[value].mean().reset_index()
    with np.errstate(divide="ignore", invalid="ignore"):  # a value of 0 has mean 0 and no interval
        numbers = np.log(values[value]) if geometric else values[value]
        groups = numbers.groupby([values[key] for key in by], dropna=False, sort=False)
        estimates = [(*key, *_estimate(group.to_numpy(float))) for key, group in groups]
    found = pd.DataFrame(estimates, columns=[*by, "mean", "low", "high", "n", "error"])
    if geometric:
        found[["mean", "low", "high"]] = np.exp(found[["mean", "low", "high"]])
    return found.assign(log=geometric)


def _estimate(values: np.ndarray) -> tuple[float, float, float, int, float]:
    """Mean, bounds of the two-sided 95% Student interval, n and standard error; NaN values are left out."""
    values = values[~np.isnan(values)]
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    error = float(values.std(ddof=1)) / n**0.5 if n > 1 else np.nan
    half = float(stats.t.ppf(0.975, n - 1)) * error if n > 1 else np.nan
    return mean, mean - half, mean + half, n, error


def _require(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in frame:
            raise UserError(f"no column {column!r}; is it declared in the experiment's columns?")


def _check_seeds(frame: pd.DataFrame, keys: list[str]) -> None:
    doubled = frame.duplicated(keys)
    if doubled.any():
        first = ", ".join(f"{key} {frame.loc[doubled, key].iloc[0]}" for key in keys)
        raise ValueError(
            f"interval: several rows of one seed ({first}); select one, or average over layers and the like"
        )


def _check_networks(runs: pd.DataFrame, by: Sequence[str]) -> None:
    _require(runs, by)
    doubled = runs[runs.duplicated([*by, "seed"], keep=False)]
    if doubled.empty:
        return
    same = next(group for _, group in doubled.groupby([*by, "seed"], dropna=False, sort=False))
    which = ", ".join(f"{_words(key)} {same[key].iloc[0]}" for key in (*by, "seed"))
    raise UserError(
        f"{which} has several networks ({_difference(same)})\n"
        "sweep each under its own name=... and draw that, or remove this folder's parts and sweep one again "
        "(what is trained is kept)"
    )


def _difference(networks: pd.DataFrame) -> str:
    """The first of them with the settings in which they differ."""
    settings = [c for c in networks if c not in ("run", *RESULTS)]
    differing = [c for c in settings if networks[c].nunique(dropna=False) > 1]
    described = [
        ", ".join([str(row["run"]), *(f"{column} {row[column]}" for column in differing)])
        for row in networks.head(3).to_dict("records")
    ]
    return "; ".join(described)


def _at_shares(frame: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    done = frame["step"] / frame["steps"]
    chosen = []
    for share in shares:
        distance = (done - share).abs()
        nearest = distance == distance.groupby(frame["run"]).transform("min")
        close = distance <= (0.5 / frame["steps"]).clip(lower=0.02) + 1e-9
        near = frame[nearest & close]
        later = near["step"] == near.groupby("run")["step"].transform("max")  # of two steps that are equally near
        chosen.append(near[later].assign(panel=share_name(share)))
    return pd.concat(chosen, ignore_index=True)


def share_name(share: float) -> str:
    """The panel of a share of the training."""
    return "at the end of training" if share == 1 else f"after {share:.0%} of training"


def _panel_for_each(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    ordered = frame.sort_values([*by, "step"])
    panel = pd.Series("", ordered.index)
    for key in by:
        panel += f", {_words(key)} " + ordered[key].astype(str)
    return ordered.assign(panel=panel.str[2:] + " (" + ordered["steps"].astype(str) + " steps)")


def _words(key: str) -> str:
    return key.replace("_", " ")
