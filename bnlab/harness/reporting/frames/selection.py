"""Rows of a table with their networks' settings: chosen by the values in their columns, put in order, and named."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.errors import NoRows, UserError

Tables = Mapping[str, pd.DataFrame]
"""Those of an experiment, by name; `runs` is one of them."""
_PLACES = ("momentum", "dose", "size")  # columns of real numbers that are no measured values
# Columns of `runs` that are results, or say the same as others; all other columns are settings.
RESULTS = ("status", "train_seconds", "final_loss", "last_step", "settings", "versions", "device", "threads")
_DERIVED = ("run", "steps", "lr_effective", "norm_batch_size", "seed", *RESULTS)
# In conditions, in place of columns' names.
_WORDS = {
    "depth": "layer",
    "largest": "largest in layer",
    "norm.batch_size": "parts of",
    "optimizer.name": "optimizer",
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "weight decay",
    "optimizer.schedule": "schedule",
    "averaging": "weights averaged by",
    "freeze_with": "frozen with",
}


@dataclass(frozen=True)
class OtherThan:
    """All values but this one, or any of several, for `select`: `estimator=OtherThan("exact")`."""

    value: Any


def rows(
    tables: Tables,
    table: str,
    at: float | Sequence[float] = (),
    by: Sequence[str] = ("batch_size",),
    **wanted: Any,
) -> pd.DataFrame:
    """Rows of a table with their networks' settings, and a column `panel`.

    Args:
        tables: the tables of an experiment, `runs` among them.
        table: the name of the table.
        at: shares of the training, 0 to 1, each a panel. Of each network the measured step nearest to the share, if it
            is within 2% of the training or half a step. Without any all steps, a panel for each of `by`.
        by: settings in which the networks differ beside the seed, dotted where nested (`model.depth`).
        wanted: for columns of the table or settings, see `select`.

    Raises:
        NoRows: the table has no rows.
        UserError: networks agree in `by` and seed, or differ in other settings.
    """
    frame, runs = tables.get(table, pd.DataFrame()), tables["runs"]
    if frame.empty:
        raise NoRows(f"the table {table} has no rows")
    settings = runs[[c for c in runs if c == "run" or c not in frame]]
    own = {column: value for column, value in wanted.items() if column in frame}
    others = {column: value for column, value in wanted.items() if column not in frame}
    joined = select(select(frame, **own).merge(settings, on="run"), **others)  # few rows, before many columns
    _require_one_network(runs[runs["run"].isin(joined["run"].unique())], by)
    if shares := np.atleast_1d(at).tolist():
        return _select_shares(joined, shares)
    name = ", ".join(name_value(key, f"{{{key}}}") for key in by)
    return name_panels(joined.sort_values("step", kind="stable"), f"{name} ({{steps}} steps)")


def _require_one_network(runs: pd.DataFrame, by: Sequence[str]) -> None:
    """UserError if an average over seeds would mix networks: several of one seed, or seeds that differ in a setting."""
    require_columns(runs, by)
    settings = [str(column) for column in runs if column not in ("run", "seed", *RESULTS)]
    for _, group in runs.groupby(list(by), dropna=False, sort=False) if by else [((), runs)]:
        differing, doubled = list_differences(group, settings), group["seed"].duplicated().any()
        if doubled or differing:
            found = "several networks of one seed" if doubled else "seeds that were trained with different settings"
            raise UserError(
                f"{name_row(group, by) or 'the table'} has {found} ({differing or ', '.join(group['run'].head(3))})\n"
                "tell them apart (by=...), select one of them, or sweep each under its own name=..."
            )


def _select_shares(frame: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    """Of each network the rows of the step nearest to each share of the training, if it is near; a panel each."""
    done = frame["step"] / frame["steps"]
    chosen = []
    for share in shares:
        distance = (done - share).abs()
        nearest = distance == distance.groupby(frame["run"]).transform("min")
        near = frame[nearest & (distance <= (0.5 / frame["steps"]).clip(lower=0.02) + 1e-9)]
        later = near["step"] == near.groupby("run")["step"].transform("max")  # of two steps that are equally near
        chosen.append(near[later].assign(panel=share_name(share)))
    return pd.concat(chosen, ignore_index=True)


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows whose columns have the wanted values: one, any of several, or all others (`OtherThan`); None is null."""
    require_columns(frame, wanted)
    for column, value in wanted.items():
        if isinstance(value, OtherThan):
            frame = frame[~_matches(frame[column], value.value)]
        else:
            frame = frame[_matches(frame[column], value)]
    return frame


def _matches(column: pd.Series, wanted: Any) -> pd.Series:
    """Of each row, whether it has one of the wanted values, of which there may be one or several."""
    values = list(wanted) if isinstance(wanted, Collection) and not isinstance(wanted, str) else [wanted]
    matches = column.isin([value for value in values if value is not None])
    return matches | column.isna() if None in values else matches


def lowest(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Of each group, told apart by `by`, the row with the smallest value, the first of several; NaN is left out."""
    require_columns(frame, [value, *by])
    ordered = frame.reset_index(drop=True).dropna(subset=value)
    return ordered.loc[ordered.groupby(list(by), dropna=False, sort=False)[value].idxmin()]


def put_in_order(frame: pd.DataFrame, column: str, values: Iterable[Any]) -> pd.DataFrame:
    """The rows in the order in which `values` has those of a column; rows with another value come last."""
    require_columns(frame, [column])
    places = {value: place for place, value in enumerate(values)}
    return frame.sort_values(column, key=lambda cells: cells.map(places), kind="stable")


def find_parameter(frame: pd.DataFrame, name: str, of: str = "") -> pd.Series:
    """A number in the names of the rows' estimators: of `window(k=20)`, `k` is 20.

    Args:
        frame: any rows with an estimator.
        name: the parameter.
        of: the estimator that it is a parameter of; any, by default.

    Returns:
        [rows]: NaN where the estimator has no such parameter, or it is no number.
    """
    require_columns(frame, ["estimator"])
    pattern = rf"^{of or '[^(]+'}\((?:.*,)?\s*{name}\s*=\s*([^,)\s]+)"
    return pd.to_numeric(frame["estimator"].str.extract(pattern, expand=False), errors="coerce").astype(float)


def name_panels(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with the name of their panel, such as `batch size {batch_size}, layer {depth}`.

    They are sorted by what it names, the first before the second: numbers, and words in order of appearance.
    """
    columns = re.findall(r"\{([^{}]+)\}", name)
    require_columns(frame, columns)
    named = [frame[column] for column in columns]
    keys = [cells if pd.api.types.is_numeric_dtype(cells) else pd.factorize(cells)[0] for cells in named]
    ordered = frame.iloc[np.lexsort(keys[::-1])]
    template = re.sub(r"\{[^{}]+\}", "{}", name)  # by place: a column such as `optimizer.lr` has a dot
    cells = zip(*(ordered[column] for column in columns), strict=True)
    return ordered.assign(panel=[template.format(*row) for row in cells])


def share_name(share: float) -> str:
    """The panel of a share of the training."""
    return "at the end of training" if share == 1 else f"after {100 * share:.3g}% of training"


def name_value(key: str, value: Any) -> str:
    """A column and its value in words; of `line`, `panel` and `layers` the value says it all.

    >>> name_value("batch_size", 8), name_value("norm.batch_size", 8), name_value("depth", 2)
    ('batch size 8', 'parts of 8', 'layer 2')
    """
    if key == "moment":
        return {"mean": "means", "var": "variances"}.get(value, str(value))
    return str(value) if key in ("line", "panel", "layers") else f"{_WORDS.get(key, key.replace('_', ' '))} {value}"


def write_value(value: Any) -> str:
    """Write a value of a setting as one reads it.

    >>> write_value(8.0), write_value(True), write_value([8, 16])
    ('8', 'yes', '8, 16')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(write_value, value))
    return str(value)


def list_values(values: pd.Series) -> str:
    """Write the values that occur in order, with commas between them."""
    return ", ".join(map(write_value, sorted(values.dropna().unique())))


def list_varied(runs: pd.DataFrame) -> list[str]:
    """List the settings in which networks differ, seed apart; one of two that agree, as `lr` and `optimizer.lr`."""
    settings = list_settings(runs)
    varied = [column for column in settings if runs[column].nunique(dropna=False) > 1]
    return [str(column) for column in runs[varied].astype(str).T.drop_duplicates().index]


def list_settings(runs: pd.DataFrame) -> list[str]:
    """List the columns of `runs` that are settings: no results, and nothing that follows from other settings."""
    return [str(column) for column in runs if column not in _DERIVED]


def name_row(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """The first row of a frame in words, as `batch size 8, seed 0`."""
    return ", ".join(name_value(column, frame[column].iloc[0]) for column in columns)


def list_differences(frame: pd.DataFrame, columns: Iterable[str]) -> str:
    """The first columns in which the rows of a frame differ, each with three values, as `momentum 0.01, 0.1`."""
    values = {column: frame[column].dropna().unique() for column in columns if column in frame}
    differing = [name_value(c, ", ".join(map(str, found[:3]))) for c, found in values.items() if len(found) > 1]
    return "; ".join(differing[:3])


def require_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """UserError that names the first of these columns that is missing, and one that is called nearly so."""
    for column in columns:
        if column not in frame:
            close = difflib.get_close_matches(column, map(str, frame), n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(map(str, frame))}"
            raise UserError(f"no column {column!r}; {hint}")


def require_one_row(frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """UserError if several rows agree in the keys."""
    doubled = frame[frame.duplicated(keys, keep=False)]
    if len(doubled):
        same = doubled[doubled.groupby(list(keys), dropna=False, sort=False).ngroup() == 0]
        places = [str(column) for column in same if column in _PLACES or same[column].dtype != float]
        differing = list_differences(same, places)
        raise UserError(f"several rows of {name_row(same, keys)} ({differing}); select one, or average over them")
