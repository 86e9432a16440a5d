"""The column `panel`, by which a figure's rows are parted, and `kind`, by which those of a panel are."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames.selection import name_value, require_columns


def share_name(share: float) -> str:
    """The panel of a share of the training."""
    return "at the end of training" if share == 1 else f"after {100 * share:.3g}% of training"


def select_shares(frame: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    """Of each network the rows of the step nearest to each share of the training, if it is near; a panel each."""
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


def add_setting_panels(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows in order of the settings, with a panel for each combination of these and the steps of the training."""
    ordered = frame.sort_values([*by, "step"], kind="stable")
    keys = [*dict.fromkeys([*by, "steps"])]
    names = []
    for kind in ordered[keys].drop_duplicates().to_dict("records"):
        settings = ", ".join(name_value(key, kind[key]) for key in by)
        names.append(f"{settings} ({kind['steps']} step{'s' * (kind['steps'] != 1)})")
    places = ordered.groupby(keys, dropna=False, sort=False).ngroup()
    return ordered.assign(panel=[names[place] for place in places])


def name_panels(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows, sorted by the numbers in the name, with a panel for each of its values.

    Args:
        frame: any rows.
        name: of a panel, columns in braces, as in `batch size {batch_size}, last {last}`.

    Raises:
        UserError: a column is missing.
    """
    columns = [column for _, column, _, _ in string.Formatter().parse(name) if column]
    require_columns(frame, columns)
    numbers = [column for column in columns if pd.api.types.is_numeric_dtype(frame[column])]
    ordered = frame.sort_values(numbers, kind="stable") if numbers else frame
    if not columns:
        return ordered.assign(panel=name)
    rows: list[dict[Any, Any]] = ordered[columns].drop_duplicates().to_dict("records")
    names = np.array([_Columns().vformat(name, (), row) for row in rows], dtype=object)
    return ordered.assign(panel=names[ordered.groupby(columns, dropna=False, sort=False).ngroup()])


class _Columns(string.Formatter):
    """Takes what stands in braces for a column, as `optimizer.lr`, and not for an attribute."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        """The value of a column, and its name."""
        return kwargs[field_name], field_name


def overlay(**frames: pd.DataFrame) -> pd.DataFrame:
    """All rows, with the name of their frame in the column `kind`: what a panel draws upon each other.

    Args:
        frames: by name, such as `measured`, `dashed`, `star`: see the kinds of panel.
    """
    return pd.concat([frame.assign(kind=kind) for kind, frame in frames.items()], ignore_index=True)
