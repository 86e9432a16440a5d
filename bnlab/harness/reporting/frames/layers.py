"""Gaps over the layers of a network: one definition for every figure, claim and notebook.

The first layer's input is standardized by hand: its means stay near 0 while the weights move, so that it hardly lags,
and a mean over all layers would hide that the others do. Therefore:

- a gap over layers is the root mean square over the layers behind the first, and the first layer stands beside it;
- a ratio is taken layer by layer, and averaged geometrically over the layers behind the first;
- a claim that a gap is small is about the layer with the largest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames.selection import OtherThan, require_columns, require_one_row

FIRST = "first layer"
BEHIND = "behind the first layer"
RATIO_OVER_LAYERS: dict[str, Any] = {"depth": OtherThan(1), "average": "layer", "geometric": True}
"""In `score`: ratios that were taken layer by layer become their geometric mean over the layers behind the first."""

# What tells apart the statistics that a network has at one step; a frame has some of these columns.
_STATISTICS = ("run", "panel", "line", "step", "estimator", "momentum", "statistics_split", "last")


def gap_over_layers(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Average a gap over the layers of each network, step and estimator.

    Args:
        frame: rows of `rows`, one for each layer, with `depth` counted from 1.
        value: the column with the gap.

    Raises:
        UserError: several rows of one layer, which would be averaged as if they were layers.

    Returns:
        Two rows for each network, step and estimator, told apart by the new column `layers`: `BEHIND` with the root
        mean square over the layers behind the first, and `FIRST` with the gap of the first layer. Rows of several
        channels of a layer are averaged alike. Other measured columns are those of one of the layers.
    """
    keys = [*_list_keys(frame, [value]), "layers"]
    is_first = frame["depth"] == 1
    layers = np.where(is_first, FIRST, BEHIND)
    averaged = frame.assign(layers=layers)

    averaged[value] = averaged[value] ** 2
    groups = averaged.groupby(keys, dropna=False, sort=False)
    mean_squares = groups[value].transform("mean")
    averaged[value] = np.sqrt(mean_squares)

    one_for_each = averaged.drop_duplicates(keys)
    return one_for_each.drop(columns=["depth", "layer"], errors="ignore")


def find_largest_gap(frame: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """Find the layer with the largest gap of each network, step and estimator, the first layer included.

    Args:
        frame: rows of `rows`, one for each layer.
        value: the column with the gap; rows without a value are left out.
        by: what a claim tells apart, such as "panel", "batch_size".

    Returns:
        One row for each network, step and estimator, with a new column `largest`: the depth of the layer that most
        networks of the same `by` have, as `3`, or `3 (12 of 15)` where some have another one.
    """
    keys = _list_keys(frame, [value, *by])
    measured = frame.dropna(subset=value)
    measured = measured.reset_index(drop=True)
    groups = measured.groupby(keys, dropna=False, sort=False)
    places = groups[value].idxmax()
    largest = measured.loc[places]

    conditions = largest.groupby([*by], dropna=False, sort=False)
    names = conditions["depth"].transform(_name_commonest)
    return largest.assign(largest=names)


def _name_commonest(depths: pd.Series) -> str:
    """Name the commonest depth, with how many of the networks have it unless all do."""
    counts = depths.value_counts()
    depth = counts.index[0]
    count = counts.iloc[0]
    if count == len(depths):
        return str(depth)
    return f"{depth} ({count} of {len(depths)})"


def _list_keys(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """List what tells statistics apart, of a frame that has one row for each of them and layer, and these columns."""
    require_columns(frame, [*columns, "depth"])
    keys = [key for key in _STATISTICS if key in frame]

    places = ["depth"]
    if "channel" in frame:
        places.append("channel")
    require_one_row(frame, [*keys, *places])
    return keys
