"""Rows of a table with their networks' settings, of one network for each combination of settings and seed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from bnlab.harness.errors import NoRows, Note, UserError
from bnlab.harness.reporting.frames.panels import add_setting_panels, select_shares, share_name
from bnlab.harness.reporting.frames.selection import name_value, require_columns, select

# Columns of `runs` that are results, or say the same as others; all other columns are settings.
RESULTS = ("status", "train_seconds", "final_loss", "last_step", "settings", "versions", "device", "threads")


def rows(
    tables: Mapping[str, pd.DataFrame],
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
        wanted: for columns of the table or settings, see `select`; `split` and `shift` where several were predicted.

    Raises:
        NoRows: the table has no rows.
        UserError: a column is missing, the table has several splits or shifts of which none is wanted, an estimator's
            statistics are of other images in some networks than in others, or networks agree in `by` and seed, or
            differ in other settings, which an average over seeds would mix.
    """
    frame, runs = tables[table], tables["runs"]
    if frame.empty:
        raise NoRows(f"the table {table} has no rows")
    settings = runs[[c for c in runs if c == "run" or c not in frame]]
    own = {column: value for column, value in wanted.items() if column in frame}
    others = {column: value for column, value in wanted.items() if column not in frame}
    joined = select(select(frame, **own).merge(settings, on="run"), **others)  # few rows, before many columns
    for column, setting in (("split", "evaluate_on"), ("shift", "shifts")):
        if column in joined and column not in wanted:
            _check_images(table, joined, column, setting)
    _check_networks(runs[runs["run"].isin(joined["run"].unique())], by)
    shares = [at] if isinstance(at, float) else list(at)
    if not shares:
        _check_populations(table, joined)
        return add_setting_panels(joined, by)
    found = select_shares(joined, shares)
    _check_populations(table, found)
    for share in shares:
        if len(joined) and not (found["panel"] == share_name(share)).any():
            warnings.warn(
                f"{table} has no rows {share_name(share)}: evaluate_at lists the steps that are measured, and "
                "accuracy_at=all evaluates at all of them",
                Note,
                stacklevel=2,
            )
    return found


def _check_images(table: str, frame: pd.DataFrame, column: str, setting: str) -> None:
    """UserError if the rows are of several splits, or shifts."""
    found = list(frame[column].unique())
    if len(found) > 1:
        raise UserError(
            f"{table} has rows of several {column}s ({', '.join(found)}), and the score selects none: give it {column}="
            f"{found[0]!r}, or sweep one {column} ({setting}=) under a name=... of its own"
        )


def _check_populations(table: str, frame: pd.DataFrame) -> None:
    """UserError if an estimator's statistics are of other images in some networks or steps than in others.

    Unless all have those of the training split, which comparisons take.
    """
    measured = ["estimator", "run", "step"]
    if not {*measured, "statistics_split"} <= {*frame}:
        return
    rows = frame[[*measured, "statistics_split"]].drop_duplicates().sort_values("statistics_split")
    splits = rows.groupby(measured)["statistics_split"].agg(" and ".join).reset_index()
    for estimator, found in splits.groupby("estimator"):
        if found["statistics_split"].nunique() > 1 and not found["statistics_split"].str.contains(r"\btrain\b").all():
            each = found.drop_duplicates("statistics_split").itertuples()
            where = "; ".join(f"{row.statistics_split} in {row.run} at step {row.step}" for row in each)
            raise UserError(
                f"{table} has rows of {estimator} that are of other populations in some networks or steps than in "
                f"others ({where}): sweep all with the same population=... and estimators, or each under a name=... of "
                "its own"
            )


def _check_networks(runs: pd.DataFrame, by: Sequence[str]) -> None:
    """UserError if an average over seeds would mix networks: several of one seed, or seeds that differ in a setting."""
    require_columns(runs, by)
    if "data" in runs and (runs["data"] == "image_folder").any():
        runs = runs.assign(files=runs["run"].str.partition("/")[0])  # a setting that only the name tells
    settings = [c for c in runs if c not in ("run", "seed", *RESULTS) and runs[c].nunique() > 1]
    doubled = runs.duplicated([*by, "seed"], keep=False)
    # Null is not known, of a part of an earlier version.
    unlike = (_group(runs, by)[settings].transform("nunique") > 1).any(axis=1)
    for wrong, keys, found in (
        (runs[doubled], (*by, "seed"), "several networks"),
        (runs[unlike], by, "seeds that were trained with different settings"),
    ):
        if wrong.empty:
            continue
        same = wrong[_group(wrong, keys).ngroup() == 0]
        which = ", ".join(name_value(key, same[key].iloc[0]) for key in keys) or "the table"
        raise UserError(
            f"{which} has {found} ({_describe_difference(same)})\n"
            "sweep each under its own name=... and draw that, or remove this folder's parts and sweep one again "
            "(what is trained is kept); where they are to be compared, tell them apart by that setting: by=(...)"
        )


def _group(runs: pd.DataFrame, keys: Sequence[str]) -> DataFrameGroupBy:
    """The networks that agree in these settings, null ones too; all in one group where there are none."""
    return runs.groupby(list(keys) or np.zeros(len(runs)), dropna=False, sort=False)


def _describe_difference(networks: pd.DataFrame) -> str:
    """The first of each kind, with the settings in which they differ."""
    # Some settings are in two columns, of which the first is enough.
    settings = networks.drop(columns=["run", "seed", *RESULTS], errors="ignore").T.drop_duplicates().index
    differing = [c for c in settings if networks[c].nunique(dropna=False) > 1]
    kinds = networks.drop_duplicates(differing) if differing else networks
    described = [
        ", ".join([str(row["run"]), *(f"{column} {row[column]}" for column in differing)])
        for row in kinds.head(3).to_dict("records")
    ]
    return "; ".join(described)
