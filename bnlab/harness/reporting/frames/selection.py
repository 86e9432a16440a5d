"""Rows that are chosen by the values in their columns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.harness.errors import UserError
from bnlab.harness.schema import TABLES

DEFAULT_MOMENTUM = 0.1  # PyTorch's

# In conditions, in place of columns' names.
_WORDS = {
    "depth": "layer",
    "norm.batch_size": "parts of",
    "optimizer.name": "optimizer",
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "weight decay",
    "optimizer.schedule": "schedule",
    "averaging": "weights averaged by",
    "freeze_with": "frozen with",
}
# What rows of a table are told apart by, beside their networks; not the settings of these.
_TELLING = {key for table in TABLES.values() for key in table.key if key != "run"}


@dataclass(frozen=True)
class OtherThan:
    """All values but this one, or any of several, for `select`: `estimator=OtherThan("exact")`."""

    value: Any


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows whose columns have the wanted values: one, any of several, or all others (`OtherThan`); None is null.

    Raises:
        UserError: there is no such column, or an estimator is wanted without the parameters that it has in the rows.
    """
    for column, value in wanted.items():
        require_columns(frame, [column])
        if column == "estimator":
            check_estimators(frame["estimator"], value)
        if isinstance(value, OtherThan):
            frame = frame[~_matches(frame[column], _list_values(value.value))]
        else:
            frame = frame[_matches(frame[column], _list_values(value))]
    return frame


def lowest(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Of each group the row with the smallest value, the first of several; NaN values are left out.

    Args:
        frame: any rows.
        value: the column that is compared, as a gap.
        by: what groups are told apart by; a null key is a group.

    Raises:
        UserError: a column is missing.
    """
    require_columns(frame, [value, *by])
    ordered = frame.reset_index(drop=True).dropna(subset=value)
    return ordered.loc[ordered.groupby(list(by), dropna=False, sort=False)[value].idxmin()]


def put_in_order(frame: pd.DataFrame, column: str, values: Iterable[Any]) -> pd.DataFrame:
    """The rows in the order in which `values` has those of a column; rows with another value come last.

    Raises:
        UserError: the column is missing.
    """
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
        A value for each row; NaN where its estimator has no such parameter.

    Raises:
        UserError: the column `estimator` is missing, or the parameter is no number.
    """
    require_columns(frame, ["estimator"])
    pattern = rf"^{of or '[^(]+'}\((?:.*,)?\s*{name}\s*=\s*([^,)\s]+)"
    texts = frame["estimator"].str.extract(pattern, expand=False)
    numbers = pd.to_numeric(texts, errors="coerce")
    words = frame["estimator"][numbers.isna() & texts.notna()]
    if len(words):
        raise UserError(f"the parameter {name} of {words.iloc[0]} is no number")
    return numbers.astype(float)


def check_estimators(estimators: pd.Series, wanted: Any) -> None:
    """UserError for `kalman` where rows are of `kalman(per=layer)`: nothing would be found, without a word."""
    present = set(estimators.unique())
    for name in _list_values(wanted.value if isinstance(wanted, OtherThan) else wanted):
        same = sorted(p for p in present if str(p).startswith(f"{name}("))
        if name not in present and same:
            raise UserError(f"there are no rows of estimator {name!r}; there is {', '.join(map(repr, same))}")


def require_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """UserError that names the first of these columns that is missing."""
    for column in columns:
        if column not in frame:
            close = difflib.get_close_matches(str(column), map(str, frame), n=1)
            hint = f"did you mean {close[0]!r}, or " if close else ""
            raise UserError(f"no column {column!r}; {hint}is it not declared in the experiment's columns?")


def name_value(key: str, value: Any) -> str:
    """A column and its value in words; of a column `line` the value says it all.

    >>> name_value("batch_size", 8), name_value("norm.batch_size", 8), name_value("depth", 2)
    ('batch size 8', 'parts of 8', 'layer 2')
    """
    if key == "moment":
        return {"mean": "means", "var": "variances"}.get(value, str(value))
    if key == "line":
        return str(value)
    return f"{_WORDS.get(key, key.replace('_', ' '))} {value}"


def describe_difference(frame: pd.DataFrame, by: Sequence[str]) -> str:
    """What tells the first rows apart that agree in `by`, as `: momentum 0.01, 0.1`; empty where no column does."""
    agreeing = frame[frame.duplicated([*by], keep=False)]
    first = agreeing.groupby([*by], dropna=False, sort=False).ngroup() == 0
    values = {column: agreeing[column][first].dropna().unique() for column in agreeing if column in _TELLING}
    words = [name_value(column, _list_some(of)) for column, of in values.items() if len(of) > 1]
    return f": {'; '.join(words)}" if words else ""


def _list_some(values: Iterable[Any]) -> str:
    """In order, the first three."""
    texts = [
        f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(values, key=lambda v: (isinstance(v, str), v))
    ]
    return ", ".join(texts[:3]) + " and more" * (len(texts) > 3)


def _list_values(value: Any) -> tuple[Any, ...]:
    """The values of what may be one or several."""
    return tuple(value) if isinstance(value, Collection) and not isinstance(value, str) else (value,)


def _matches(column: pd.Series, values: Sequence[Any]) -> pd.Series:
    matches = column.isin([v for v in values if v is not None])
    return matches | column.isna() if None in values else matches
