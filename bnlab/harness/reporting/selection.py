"""Selected rows: those with wanted values, in a wanted order, with the names of their panels."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.common.names import StatisticName
from bnlab.harness.reporting.means import require_columns


@dataclass(frozen=True)
class OtherThan:
    """All values but this one, or any of several, for `select`: `estimator=OtherThan("exact")`."""

    value: Any


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Select the rows that have the wanted values.

    Args:
        frame: any rows.
        wanted: by column, a value, any of several, or all others (`OtherThan`); None is null.
    """
    require_columns(frame, wanted)
    for column, value in wanted.items():
        is_unwanted = isinstance(value, OtherThan)
        values = value.value if is_unwanted else value
        # A text is a collection too, of its letters.
        if not isinstance(values, Collection) or isinstance(values, str):
            values = [values]

        known = [each for each in values if each is not None]
        is_listed = frame[column].isin(known)
        if len(known) < len(values):
            # `isin` tells None from NaN, but both are null.
            is_listed |= frame[column].isna()
        frame = frame[~is_listed if is_unwanted else is_listed]
    return frame


def lowest(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Select the row with the smallest value for each of `by`, the first of several; NaN is left out."""
    require_columns(frame, [value, *by])
    # Rows that were put together may share a label, and `loc` would select all that do.
    measured = frame.reset_index(drop=True).dropna(subset=value)
    groups = measured.groupby([*by], dropna=False, sort=False)
    return measured.loc[groups[value].idxmin()]


def put_in_order(frame: pd.DataFrame, column: str, values: Iterable[Any]) -> pd.DataFrame:
    """Put the rows in the order in which `values` has those of a column; rows with another value come last."""
    require_columns(frame, [column])
    rank_of_value = {value: rank for rank, value in enumerate(values)}
    return frame.sort_values(column, key=lambda cells: cells.map(rank_of_value), kind="stable")


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
        estimator = StatisticName.parse(text)
        is_wanted = of in ("", estimator.base)
        values.append(estimator.parameters.get(name) if is_wanted else None)
    parameters = pd.Series(values, frame.index, dtype=object)
    numbers = pd.to_numeric(parameters, errors="coerce")
    return numbers.astype(float)


def share_name(share: float) -> str:
    """Name the panel of a share of the training."""
    return "at the end of training" if share == 1 else f"after {100 * share:.3g}% of training"


def name_panels(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Add the name of their panel to the rows, such as `batch size {batch_size}, layer {depth}`.

    They are sorted by what it names, the first before the second: numbers, and words in order of appearance.
    """
    columns = re.findall(r"\{([^{}]+)\}", name)
    require_columns(frame, columns)

    def rank(values: pd.Series) -> Any:
        return values if pd.api.types.is_numeric_dtype(values) else pd.factorize(values)[0]

    ordered = frame.sort_values(columns, key=rank, kind="stable")
    template = re.sub(r"\{[^{}]+\}", "{}", name)  # by place: a column such as `optimizer.lr` has a dot
    numbers = ordered.groupby(columns, dropna=False, sort=False).ngroup()
    panels = ordered.loc[~numbers.duplicated().to_numpy(), columns]  # of a hundred thousand rows few are named
    names = [template.format(*values) for values in panels.itertuples(index=False)]
    return ordered.assign(panel=[names[number] for number in numbers])
