"""Rows of a table with their networks' settings: chosen by the values in their columns, put in order, and named."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.means import require_columns
from bnlab.harness.reporting.wording import list_differences, name_row, name_value
from bnlab.harness.run_table import RESULTS
from bnlab.names import EstimatorName

Tables = Mapping[str, pd.DataFrame]
"""The tables of an experiment, by name; `runs` is one of them."""
OVERVIEWED = ("gaps", "evaluations")
"""The tables of which any sweep is reported on, also without a question."""
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
        return pd.concat([_select_share(chosen, share) for share in shares], ignore_index=True)
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
    counts = runs[settings].groupby(group).nunique()
    differs = counts.gt(1).any(axis=1)
    doubled = runs.assign(group=group).duplicated(["group", "seed"])
    is_doubled = doubled.groupby(group).any()
    mixed = differs.index[differs | is_doubled]
    if mixed.empty:
        return

    first = runs[group == mixed[0]]
    where = name_row(first, by) or "the table"
    differing = list_differences(first, settings)
    if not differing:
        differing = ", ".join(first["run"].head(3))
    raise UserError(
        f"{where} has several networks of one seed, or seeds that were trained with different settings ({differing});\n"
        "tell them apart (by=...), select one of them, or sweep each under its own name=..."
    )


def _select_share(frame: pd.DataFrame, share: float) -> pd.DataFrame:
    """Select, for each network, the step nearest to a share of the training, if it is near."""
    steps = frame["steps"]
    half_a_step = 0.5 / steps
    allowed = half_a_step.clip(lower=0.02) + 1e-9
    done = frame["step"] / steps
    distance = (done - share).abs()
    by_network = distance.groupby(frame["run"])
    is_nearest = distance == by_network.transform("min")
    is_near = distance <= allowed
    near = frame[is_nearest & is_near]
    latest = near.groupby("run")["step"].transform("max")  # of two steps that are equally near
    one = near[near["step"] == latest]
    return one.assign(panel=share_name(share))


def share_name(share: float) -> str:
    """Name the panel of a share of the training."""
    return "at the end of training" if share == 1 else f"after {100 * share:.3g}% of training"


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
        if not isinstance(values, Collection) or isinstance(values, str):
            values = [values]

        known = [each for each in values if each is not None]
        is_found = frame[column].isin(known)
        if len(known) < len(values):
            is_found |= frame[column].isna()
        frame = frame[~is_found if is_unwanted else is_found]
    return frame


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
    numbers = pd.to_numeric(found, errors="coerce")
    return numbers.astype(float)


def name_panels(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Add the name of their panel to the rows, such as `batch size {batch_size}, layer {depth}`.

    They are sorted by what it names, the first before the second: numbers, and words in order of appearance.
    """
    columns = re.findall(r"\{([^{}]+)\}", name)
    require_columns(frame, columns)
    keys = []
    for column in columns:
        values = frame[column]
        if not pd.api.types.is_numeric_dtype(values):
            values, _ = pd.factorize(values)
        keys.append(values)
    order = np.lexsort(keys[::-1])
    ordered = frame.iloc[order]

    template = re.sub(r"\{[^{}]+\}", "{}", name)  # by place: a column such as `optimizer.lr` has a dot
    number = ordered.groupby(columns, dropna=False, sort=False).ngroup()
    is_first = ~number.duplicated().to_numpy()
    firsts = ordered[is_first]
    cells = [firsts[column] for column in columns]
    names = [template.format(*row) for row in zip(*cells, strict=True)]
    panels = [names[place] for place in number]
    return ordered.assign(panel=panels)
