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
from bnlab.harness.run_table import DERIVED, RESULTS
from bnlab.names import EstimatorName

Tables = Mapping[str, pd.DataFrame]
"""The tables of an experiment, by name; `runs` is one of them."""
_REAL_KEYS = ("momentum", "dose", "size")  # columns of real numbers that are no measured values
_NO_SETTINGS = ("run", "seed", *DERIVED, *RESULTS)  # columns of `runs`; all others are settings
# In conditions, in place of columns' names.
_WORDS = {
    "depth": "layer",
    "largest": "largest in layer",
    "norm.batch_size": "parts of",
    "optimizer.lr": "learning rate",
    "optimizer.lr_scaling": "lr scaling",
    "optimizer.momentum": "sgd momentum",
    "optimizer.weight_decay": "weight decay",
    "optimizer.label_smoothing": "label smoothing",
    "optimizer.schedule": "schedule",
    "averaging": "weights averaged by",
    "freeze_with": "frozen with",
}


_LONG = ("settings", "versions")  # columns of `runs` with JSON, which would be copied into each measured row


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
    """Select rows of a table, with their networks' settings and a column `panel`.

    Args:
        tables: the tables of an experiment, `runs` among them.
        table: the name of the table.
        at: shares of the training, 0 to 1, each a panel: for each network the measured step nearest to the share, if it
            is within 2% of the training or half a step. Without any all steps, a panel for each of `by`.
        by: settings in which the networks differ beside the seed, dotted where nested (`model.depth`).
        wanted: for columns of the table or settings, see `select`.

    Raises:
        NoRows: the table has no rows.
        UserError: networks agree in `by` and seed, or differ in other settings.
    """
    if isinstance(by, str):
        raise UserError(f"by={by!r}: is a word; write ({by!r},)")
    frame = tables.get(table, pd.DataFrame())
    if frame.empty:
        raise NoRows(f"the table {table} has no rows")

    own = {column: wanted[column] for column in wanted if column in frame}
    others = {column: wanted[column] for column in wanted if column not in frame}
    measured = select(frame, **own)  # before the settings are added: few rows, then many columns

    runs = tables["runs"]
    settings = [column for column in runs if column == "run" or column not in (*frame, *_LONG)]
    joined = measured.merge(runs[settings], on="run")
    chosen = select(joined, **others)
    is_chosen = runs["run"].isin(chosen["run"].unique())
    _require_one_network(runs[is_chosen], by)

    shares = np.atleast_1d(at).tolist()
    if shares:
        return _select_shares(chosen, shares)
    words = [name_value(column, f"{{{column}}}") for column in by]
    ordered = chosen.sort_values("step", kind="stable")
    return name_panels(ordered, f"{', '.join(words)} ({{steps}} steps)")


def _require_one_network(runs: pd.DataFrame, by: Sequence[str]) -> None:
    """Refuse networks that an average over seeds would mix: several of one seed, or seeds that differ in a setting."""
    require_columns(runs, by)
    settings = [str(column) for column in runs if column not in ("run", "seed", *RESULTS)]
    group = pd.Series(0, runs.index)
    if by:
        group = runs.groupby([*by], dropna=False, sort=False).ngroup()
    differs = runs[settings].groupby(group).nunique().gt(1).any(axis=1)
    is_doubled = runs.assign(group=group).duplicated(["group", "seed"]).groupby(group).any()
    mixed = differs.index[differs | is_doubled]
    if mixed.empty:
        return

    first = runs[group == mixed[0]]
    where = name_row(first, by) or "the table"
    networks = "seeds that were trained with different settings"
    if is_doubled[mixed[0]]:
        networks = "several networks of one seed"
    examples = ", ".join(first["run"].head(3))
    raise UserError(
        f"{where} has {networks} ({list_differences(first, settings) or examples});\n"
        "tell them apart (by=...), select one of them, or sweep each under its own name=..."
    )


def list_groups(frame: pd.DataFrame, by: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """List the groups of rows that agree in some columns, each with their values; all rows where there is no column."""
    if not by:
        return [((), frame)]
    return list(frame.groupby([*by], dropna=False, sort=False))


def _select_shares(frame: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    """Select, for each network, the step nearest to each share of the training, if it is near; a panel each."""
    done = frame["step"] / frame["steps"]
    half_a_step = 0.5 / frame["steps"]
    allowed = half_a_step.clip(lower=0.02) + 1e-9

    chosen = []
    for share in shares:
        distance = (done - share).abs()
        nearest = distance.groupby(frame["run"]).transform("min")
        is_near = (distance == nearest) & (distance <= allowed)
        near = frame[is_near]
        latest = near.groupby("run")["step"].transform("max")  # of two steps that are equally near
        one = near[near["step"] == latest]
        chosen.append(one.assign(panel=share_name(share)))
    return pd.concat(chosen, ignore_index=True)


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Select the rows that have the wanted values.

    Args:
        frame: any rows.
        wanted: by column, a value, any of several, or all others (`OtherThan`); None is null.
    """
    require_columns(frame, wanted)
    for column, value in wanted.items():
        if isinstance(value, OtherThan):
            is_wanted = ~_find_values(frame[column], value.value)
        else:
            is_wanted = _find_values(frame[column], value)
        frame = frame[is_wanted]
    return frame


def _find_values(column: pd.Series, wanted: Any) -> pd.Series:
    """Find the rows that have a value, or one of several."""
    values = [wanted]
    if isinstance(wanted, Collection) and not isinstance(wanted, str):
        values = list(wanted)

    is_wanted = column.isin([value for value in values if value is not None])
    if None in values:
        is_wanted |= column.isna()
    return is_wanted


def lowest(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Select the row with the smallest value for each of `by`, the first of several; NaN is left out."""
    require_columns(frame, [value, *by])
    measured = frame.reset_index(drop=True).dropna(subset=value)
    groups = measured.groupby([*by], dropna=False, sort=False)
    return measured.loc[groups[value].idxmin()]


def put_in_order(frame: pd.DataFrame, column: str, values: Iterable[Any]) -> pd.DataFrame:
    """Put the rows in the order in which `values` has those of a column; rows with another value come last."""
    require_columns(frame, [column])
    places = {value: place for place, value in enumerate(values)}
    return frame.sort_values(column, key=lambda cells: cells.map(places), kind="stable")


def find_parameter(frame: pd.DataFrame, name: str, of: str = "") -> pd.Series:
    """Find a number in the names of the rows' estimators: of `window(k=20)`, `k` is 20.

    Args:
        frame: any rows with an estimator.
        name: the parameter.
        of: the estimator that it is a parameter of; any, by default.

    Returns:
        [rows]: NaN where the estimator has no such parameter, or it is no number.
    """
    require_columns(frame, ["estimator"])
    values = []
    for text in frame["estimator"]:
        estimator = EstimatorName.parse(text)
        is_wanted = of in ("", estimator.base)
        values.append(estimator.parameters.get(name) if is_wanted else None)
    found = pd.Series(values, frame.index, dtype=object)
    return pd.to_numeric(found, errors="coerce").astype(float)


def name_panels(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Add the name of their panel to the rows, such as `batch size {batch_size}, layer {depth}`.

    They are sorted by what it names, the first before the second: numbers, and words in order of appearance.
    """
    columns = re.findall(r"\{([^{}]+)\}", name)
    require_columns(frame, columns)
    keys = [_number_values(frame[column]) for column in columns]
    order = np.lexsort(keys[::-1])
    ordered = frame.iloc[order]

    template = re.sub(r"\{[^{}]+\}", "{}", name)  # by place: a column such as `optimizer.lr` has a dot
    number = ordered.groupby(columns, dropna=False, sort=False).ngroup()
    cells = [ordered.loc[~number.duplicated().to_numpy(), column] for column in columns]
    names = [template.format(*row) for row in zip(*cells, strict=True)]
    return ordered.assign(panel=[names[place] for place in number])


def _number_values(values: pd.Series) -> Any:
    """Number words in order of appearance; numbers stay as they are."""
    if pd.api.types.is_numeric_dtype(values):
        return values
    codes, _ = pd.factorize(values)
    return codes


def share_name(share: float) -> str:
    """Name the panel of a share of the training."""
    return "at the end of training" if share == 1 else f"after {100 * share:.3g}% of training"


def name_value(key: str, value: Any) -> str:
    """Say a column with its value; of `line`, `panel` and `layers` the value says it all.

    >>> name_value("batch_size", 8), name_value("norm.batch_size", 8), name_value("depth", 2)
    ('batch size 8', 'parts of 8', 'layer 2')
    """
    if key == "moment":
        return {"mean": "means", "var": "variances"}.get(value, str(value))
    if key in ("line", "panel", "layers"):
        return str(value)
    words = _WORDS.get(key, key.replace("_", " "))
    return f"{words} {value}"


def write_value(value: Any) -> str:
    """Write a value of a setting as one reads it.

    >>> write_value(8.0), write_value(True), write_value([8, 16])
    ('8', 'yes', '8, 16')
    """
    if isinstance(value, bool | np.bool_):
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
    """List the settings in which networks differ, seed apart; the first of those that say the same of all networks."""
    settings = list_settings(runs)
    varied = [column for column in settings if runs[column].nunique(dropna=False) > 1]
    firsts: dict[tuple[str, ...], str] = {}
    for column in varied:
        values = tuple(runs[column].astype(str))
        firsts.setdefault(values, column)
    return list(firsts.values())


def list_settings(runs: pd.DataFrame) -> list[str]:
    """List the columns of `runs` that are settings: no results, and nothing that follows from other settings."""
    return [str(column) for column in runs if column not in _NO_SETTINGS]


def name_row(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Name the first row of a frame, as `batch size 8, seed 0`."""
    return ", ".join(name_value(column, frame[column].iloc[0]) for column in columns)


def list_differences(frame: pd.DataFrame, columns: Iterable[str]) -> str:
    """List the first columns in which the rows of a frame differ, each with three values, as `momentum 0.01, 0.1`."""
    differing = []
    for column in columns:
        if column not in frame:
            continue
        values = frame[column].dropna().unique()
        if len(values) > 1:
            examples = ", ".join(map(str, values[:3]))
            differing.append(name_value(column, examples))
    return "; ".join(differing[:3])


def require_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse columns that are missing: name the first of them, and one that is called nearly so."""
    for column in columns:
        if column in frame:
            continue
        known = [str(one) for one in frame]
        close = difflib.get_close_matches(column, known, n=1, cutoff=0.4)
        hint = f"there are {', '.join(known)}"
        if close:
            hint = f"did you mean {close[0]!r}?"
        raise UserError(f"no column {column!r}; {hint}")


def require_one_row(frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse several rows that agree in the keys."""
    doubled = frame[frame.duplicated(keys, keep=False)]
    if doubled.empty:
        return

    same = find_first_group(doubled, keys)
    places = []
    for column in same:
        is_measured = same[column].dtype == float and column not in _REAL_KEYS
        if not is_measured:
            places.append(str(column))
    differing = list_differences(same, places)
    raise UserError(f"several rows of {name_row(same, keys)} ({differing}); select one, or average over them")


def find_first_group(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Find the rows that agree in the keys with the first row."""
    groups = frame.groupby([*keys], dropna=False, sort=False)
    return frame[groups.ngroup() == 0]
