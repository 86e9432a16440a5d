"""Rows of tables with their networks' settings, comparisons with a reference, intervals over seeds. No drawing."""

from __future__ import annotations

import difflib
import string
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bnlab.harness.errors import Note, UserError

# Columns of `runs` that are results, or say the same as others; all other columns are settings.
RESULTS = ("status", "train_seconds", "final_loss", "last_step", "settings", "versions", "device", "threads")
MEASURES = ("mean", "low", "high", "n", "error", "log")
"""The columns that `interval` adds."""
DEFAULT_MOMENTUM = 0.1  # PyTorch's

Rows = Callable[[Mapping[str, pd.DataFrame]], pd.DataFrame]


@dataclass(frozen=True)
class OtherThan:
    """All values but this one, for `select`: `estimator=OtherThan("exact")`."""

    value: Any


def score(
    source: str | Rows,
    value: str,
    by: Sequence[str],
    shares: Sequence[float] = (),
    *,
    against: Any = None,
    along: str = "estimator",
    ratio: bool = False,
    average: str | Sequence[str] | None = None,
    scale: float = 1,
    geometric: bool = False,
    **wanted: Any,
) -> Callable[[Mapping[str, pd.DataFrame]], pd.DataFrame]:
    """A score of one value: `rows`, the comparison with a reference if there is one, `interval`.

    Args:
        source: the name of a table, of which `rows` are taken; or a function of the tables that gives rows of its own.
        shares: of a table, see `rows`; its networks may differ in the settings among `by`, or else in their batch size.
        value, by, average, scale, geometric: see `interval`.
        against, along, ratio: the reference, see `paired`; it needs not be among the wanted.
        wanted: see `select`; values of `along`, and of `momentum` beside estimators, are those of the rows that are
            compared with the reference.

    Returns:
        A function of the tables, which returns the frame of `interval`.

    Raises:
        ValueError: shares beside a function, which chooses its rows itself.
    """
    if shares and not isinstance(source, str):
        raise ValueError("score: shares are those of a table; a function chooses its rows itself")
    later = (along, "momentum") if along == "estimator" else (along,)
    compared = {key: wanted.pop(key) for key in later if key in wanted}

    def scored(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        first = {**wanted, **({} if against is not None else compared)}
        if isinstance(source, str):
            settings = [key for key in by if key not in tables[source] and key != "panel"]
            frame = rows(tables, source, shares, settings or ["batch_size"], **first)
        else:
            frame = select(source(tables), **first)
        if against is not None:
            frame = select(paired(frame, value, against, along=along, ratio=ratio), **compared)
        return interval(frame, value, by, average=average, scale=scale, geometric=geometric)

    return scored


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
        wanted: for columns of the table or settings, see `select`; `split` where several were predicted.

    Raises:
        UserError: a column is missing, the table has several splits of which none is wanted, or networks agree in `by`
            and seed, or differ in other settings, which an average over seeds would mix.
    """
    frame, runs = tables[table], tables["runs"]
    settings = runs[[c for c in runs if c == "run" or c not in frame]]
    joined = select(frame.merge(settings, on="run"), **wanted)
    if "split" not in wanted:
        _check_split(table, joined)
    _check_networks(runs[runs["run"].isin(joined["run"])], by)
    if not shares:
        return _panel_for_each(joined, by)
    found = _at_shares(joined, shares)
    for share in shares:
        if len(joined) and not (found["panel"] == share_name(share)).any():
            warnings.warn(
                f"{table} has no rows {share_name(share)}: evaluate_at lists the steps that are measured, and "
                "accuracy_at=all evaluates at all of them",
                Note,
                stacklevel=2,
            )
    return found


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows whose columns have the wanted values: one, any of a tuple, or all but one (`OtherThan`); None is null.

    Raises:
        UserError: there is no such column, or an estimator is wanted without the parameters that it has in the rows.
    """
    for column, value in wanted.items():
        _require(frame, [column])
        if column == "estimator":
            _check_names(frame["estimator"], value)
        if isinstance(value, OtherThan):
            frame = frame[~_matches(frame[column], [value.value])]
        else:
            frame = frame[_matches(frame[column], _tuple(value))]
    return frame


def _check_names(estimators: pd.Series, wanted: Any) -> None:
    """UserError for `kalman` where rows are of `kalman(per=layer)`: nothing would be found, without a word."""
    present = set(estimators.unique())
    for name in _tuple(wanted.value if isinstance(wanted, OtherThan) else wanted):
        same = sorted(p for p in present if str(p).startswith(f"{name}("))
        if name not in present and same:
            raise UserError(f"there are no rows of estimator {name!r}; there is {', '.join(map(repr, same))}")


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _matches(column: pd.Series, values: Sequence[Any]) -> pd.Series:
    matches = column.isin([v for v in values if v is not None])
    return matches | column.isna() if None in values else matches


def paired(
    frame: pd.DataFrame, value: str, against: Any = "exact", *, along: str = "estimator", ratio: bool = False
) -> pd.DataFrame:
    """All rows but the reference's; `value` compared with that of the reference at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, channels, splits or panels, these agree as well, and where others
            than estimators are compared, estimator and momentum too.
        value: the column that is replaced by its difference to the reference.
        against: the estimator that is the reference, on the training split if it is there on several; rows for which
            it has none are left out.
        along: the column whose value `against` is, where it is no estimator: the batches of another `size`, another
            layer by its `depth`, another share of the training by its `panel`.
        ratio: divide by the reference instead of subtracting it.

    Raises:
        UserError: there is no such column, or the reference is named without the parameters that it has in the rows.
        ValueError: the reference has several rows for a network and step, as one of several momenta does.
    """
    _require(frame, [value, along])
    if along == "estimator":
        _check_names(frame["estimator"], against)
    keys = _same(frame, along)
    is_reference = frame[along] == against
    if along == "estimator" and "statistics_split" in frame and frame["statistics_split"][is_reference].nunique() > 1:
        is_reference &= frame["statistics_split"] == "train"
    reference = frame[is_reference].set_index(keys)[value]
    if not reference.index.is_unique:
        raise ValueError(f"paired: {against!r} has several rows for a network and step; select one, as one momentum")
    others = frame[~is_reference]
    index = pd.MultiIndex.from_frame(others[keys])
    yardstick = reference.reindex(index).to_numpy()
    compared = others.assign(**{value: others[value] / yardstick if ratio else others[value] - yardstick})
    return compared[index.isin(reference.index)]


_PLACES = ("run", "step", "panel", "layer", "channel", "split", "shift")
_WITH = {"estimator": ("estimator", "momentum"), "momentum": ("momentum",), "panel": ("panel", "step"),
         "depth": ("depth", "layer")}  # fmt: skip
"""By the column that is compared, which others say the same: they do not agree either."""


def _same(frame: pd.DataFrame, along: str = "estimator") -> list[str]:
    """The columns in which rows agree that differ along this one only."""
    differing = _WITH.get(along, (along,))
    return [key for key in (*_PLACES, "estimator", "momentum") if key in frame and key not in differing]


def over_best(frame: pd.DataFrame, value: str, estimator: str = "ema") -> pd.DataFrame:
    """All rows; `value` over the smallest that this estimator has with any momentum at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, splits or panels, these agree as well.
        value: the column that becomes a ratio, such as a gap; the best momentum in hindsight has 1.
        estimator: the one of which the best momentum is the reference; rows for which it has none are left out.

    Raises:
        UserError: there is no such column.
    """
    best = lowest(select(frame, estimator=estimator), value, _same(frame))
    return paired(pd.concat([frame, best.assign(estimator="best")]), value, against="best", ratio=True)


def lowest(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Of each group the row with the smallest value, the first of several; NaN values are left out.

    Args:
        frame: any rows.
        value: the column that is compared, as a gap.
        by: what groups are told apart by; a null key is a group.

    Raises:
        UserError: a column is missing.
    """
    _require(frame, [value, *by])
    ordered = frame.reset_index(drop=True).dropna(subset=value)
    return ordered.loc[ordered.groupby(list(by), dropna=False, sort=False)[value].idxmin()]


def name_panels(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows, sorted by the numbers in the name, with a panel for each of its values.

    Args:
        frame: any rows.
        name: of a panel, columns in braces, as in `batch size {batch_size}, last {last}`.

    Raises:
        UserError: a column is missing.
    """
    columns = [column for _, column, _, _ in string.Formatter().parse(name) if column]
    _require(frame, columns)
    numbers = [column for column in columns if pd.api.types.is_numeric_dtype(frame[column])]
    ordered = frame.sort_values(numbers, kind="stable") if numbers else frame
    return ordered.assign(panel=[name.format_map(row) for row in ordered[columns].to_dict("records")])


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
    _require(frame, [value, *by])
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = np.log(frame[value]) if geometric else frame[value]
    means = numbers.groupby([frame[key] for key in by], dropna=False, sort=False).mean()
    return (np.exp(means) if geometric else means).reset_index()


def other_seeds(frame: pd.DataFrame, values: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """`by`, `seed` and the means of `values` over all other seeds: what a prediction may know of a network.

    Args:
        frame: rows with a column `seed`.
        values: columns of which the mean is taken.
        by: what seeds have in common, such as "panel", "batch_size", "layer".

    Raises:
        UserError: a column is missing, or there is one seed only.
    """
    _require(frame, ["seed", *values, *by])
    seeds = frame.groupby(list(by), dropna=False, sort=False)["seed"].agg(["nunique", "first"])
    lonely = seeds[seeds["nunique"] == 1]
    if len(lonely):
        where = ", ".join(f"{_words(key)} {lonely.reset_index()[key].iloc[0]}" for key in by)
        raise UserError(
            f"the prediction is made from other seeds, and {where} has only seed {lonely['first'].iloc[0]}; "
            "sweep several, such as seed=0,1"
        )
    pairs = frame[[*by, "seed"]].drop_duplicates().merge(frame, on=list(by), suffixes=("", "_other"))
    others = pairs[pairs["seed"] != pairs["seed_other"]]
    return others.groupby([*by, "seed"], dropna=False, sort=False)[list(values)].mean().reset_index()


def on_curves(points: pd.DataFrame, curves: pd.DataFrame, x: str, by: Sequence[str]) -> pd.DataFrame:
    """The points with the `mean` that their curve has there: on straight lines between neighbours, over the log of `x`.

    Args:
        points: rows with `by` and a positive `x`.
        curves: rows of `interval` by `by` and `x`.
        x: the column across.
        by: what the curves are told apart by; points without a curve, or beyond its ends, are left out.
    """
    _require(points, [x, *by])
    _require(curves, [x, "mean", *by])
    placed = []
    for key, curve in curves.dropna(subset=[x, "mean"]).sort_values(x).groupby(list(by), sort=False):
        here = points[(points[list(by)] == list(key)).all(axis=1) & points[x].between(curve[x].min(), curve[x].max())]
        placed.append(here.assign(mean=np.interp(np.log(here[x]), np.log(curve[x]), curve["mean"])))
    return pd.concat(placed) if placed else points[:0].assign(mean=np.nan)


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
        by: what the rows are told apart by, nothing for one row of all; null keys are kept.
        average: columns over which each seed is averaged first, such as "layer".
        scale: a factor of all values, such as 100 for percent.
        geometric: all means are geometric, over `average` and over seeds, for positive values such as gaps and ratios:
            so a ratio of means is the mean of ratios.

    Raises:
        UserError: a column is missing.
        ValueError: several rows of one seed, which would count as so many seeds.
    """
    over = [average] if isinstance(average, str) else list(average or ())
    _require(frame, [value, "seed", *by, *over])
    with np.errstate(divide="ignore", invalid="ignore"):  # a value of 0 has mean 0 and no interval
        numbers = scale * frame[value]
        values = frame.assign(**{value: np.log(numbers) if geometric else numbers})
        _check_seeds(values, [*by, "seed", *over])
        if over:
            values = values.groupby([*by, "seed"], dropna=False, sort=False)[value].mean().reset_index()
        keys = [values[key] for key in by]
        groups = values[value].groupby(keys, dropna=False, sort=False) if keys else [((), values[value])]
        estimates = [(*key, *_estimate(group.to_numpy(float))) for key, group in groups]
    found = pd.DataFrame(estimates, columns=[*by, "mean", "low", "high", "n", "error"])
    if geometric:
        found[["mean", "low", "high"]] = np.exp(found[["mean", "low", "high"]])
    return found.assign(log=geometric)


def overlay(**frames: pd.DataFrame) -> pd.DataFrame:
    """All rows, with the name of their frame in the column `kind`: what a panel draws upon each other.

    Args:
        frames: by name, such as `measured`, `dashed`, `star`: see the kinds of panel.
    """
    return pd.concat([frame.assign(kind=kind) for kind, frame in frames.items()], ignore_index=True)


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
            close = difflib.get_close_matches(str(column), map(str, frame), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "is it declared in the experiment's columns?"
            raise UserError(f"no column {column!r}; {hint}")


def _check_seeds(frame: pd.DataFrame, keys: list[str]) -> None:
    doubled = frame.duplicated(keys)
    if doubled.any():
        first = ", ".join(f"{key} {frame.loc[doubled, key].iloc[0]}" for key in keys)
        raise ValueError(
            f"interval: several rows of one seed ({first}); select one, or average over layers and the like"
        )


def _check_split(table: str, frame: pd.DataFrame) -> None:
    splits = list(frame["split"].unique()) if "split" in frame else []
    if len(splits) > 1:
        raise UserError(
            f"{table} has rows of several splits ({', '.join(splits)}), and the score selects none: give it split="
            f"{splits[0]!r}, or sweep one split (evaluate_on=) under a name=... of its own"
        )


def _check_networks(runs: pd.DataFrame, by: Sequence[str]) -> None:
    """UserError if an average over seeds would mix networks: several of one seed, or seeds that differ in a setting."""
    _require(runs, by)
    settings = [c for c in runs if c not in ("run", "seed", *RESULTS)]
    for _, group in runs.groupby(list(by), dropna=False, sort=False) if by else [((), runs)]:
        doubled = group[group["seed"].isin(group["seed"][group["seed"].duplicated()].head(1))]
        # Null is not known, of a part of an earlier version.
        if doubled.empty and not (group[settings].nunique() > 1).any():
            continue
        same, keys = (group, by) if doubled.empty else (doubled, (*by, "seed"))
        found = "seeds that were trained with different settings" if doubled.empty else "several networks"
        which = ", ".join(f"{_words(key)} {same[key].iloc[0]}" for key in keys)
        raise UserError(
            f"{which} has {found} ({_difference(same)})\n"
            "sweep each under its own name=... and draw that, or remove this folder's parts and sweep one again "
            "(what is trained is kept); where they are to be compared, tell them apart by that setting: by=(...)"
        )


def _difference(networks: pd.DataFrame) -> str:
    """The first of each kind with the settings in which they differ."""
    # Some settings have two names: the first is enough.
    settings = networks.drop(columns=["run", "seed", *RESULTS], errors="ignore").T.drop_duplicates().index
    differing = [c for c in settings if networks[c].nunique(dropna=False) > 1]
    kinds = networks.drop_duplicates(differing) if differing else networks
    described = [
        ", ".join([str(row["run"]), *(f"{column} {row[column]}" for column in differing)])
        for row in kinds.head(3).to_dict("records")
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
    unit = pd.Series(" steps)", ordered.index).mask(ordered["steps"] == 1, " step)")
    return ordered.assign(panel=panel.str[2:] + " (" + ordered["steps"].astype(str) + unit)


def _words(key: str) -> str:
    return key.replace("_", " ")
