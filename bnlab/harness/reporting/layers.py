"""Gaps over the layers of a network: one definition for every figure, claim, notebook and caller.

The first layer's input is standardized by hand: its means stay near 0 while the weights move, so that it hardly lags,
and a mean over all layers would hide that the others do. Therefore:

- a gap over layers is the root mean square over the layers behind the first, and the first layer stands beside it
  (`gap_over_layers`); where one number is wanted, it is the former (`average_gap`);
- a ratio is taken layer by layer, and averaged geometrically over the layers behind the first
  (`frames.RATIO_OVER_LAYERS`);
- a claim that a gap is small is about the layer with the largest one (`find_largest_gap`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bnlab.harness.reporting.means import require_columns, require_one_row

FIRST = "first layer"
BEHIND = "behind the first layer"
# What tells apart the statistics that a network has at one step; a frame has some of these columns.
_STATISTICS = ("run", "panel", "line", "step", "estimator", "momentum", "statistics_split", "last")


def average_gap(gaps: pd.DataFrame, value: str = "mean_gap") -> pd.DataFrame:
    """Average the gap over the layers of each network, as `bnlab report` draws it.

    Args:
        gaps: rows of the table `gaps`, one for each layer, as `bnlab.harness.load` gives them; all of them, or some.
        value: the column with the gap: "mean_gap", in standard deviations, or another one of the table.

    Raises:
        UserError: a column is missing, or several rows are of one layer.

    Returns:
        One row for each network, step and estimator with its momentum, in the order of `gaps`: the columns run, step,
        estimator, momentum, statistics_split and epoch, as far as `gaps` has them, and `value`. This is the root mean
        square over the layers behind the first, the squares divided by their number: the first layer's input is
        standardized by hand, so that it has hardly any gap. A network with a single layer has the gap of that one.

    >>> gaps = pd.DataFrame({"run": "a", "step": 9, "depth": [1, 2, 3], "mean_gap": [0.5, 3.0, 4.0]})
    >>> average_gap(gaps).round(3)
      run  step  mean_gap
    0   a     9     3.536
    """
    keys = _list_statistics(gaps, [value])
    averaged = gap_over_layers(gaps.reset_index(drop=True), value)
    behind_before_first = averaged.sort_values("layers", key=lambda layers: layers == FIRST, kind="stable")
    chosen = behind_before_first.drop_duplicates(keys).sort_index()

    columns = [*keys, "epoch", value] if "epoch" in chosen else [*keys, value]
    return chosen[columns].reset_index(drop=True)


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
    keys = [*_list_statistics(frame, [value]), "layers"]
    is_first = frame["depth"] == 1
    layers = np.where(is_first, FIRST, BEHIND)
    squares = frame[value] ** 2
    averaged = frame.assign(layers=layers)
    averaged[value] = squares

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
    keys = _list_statistics(frame, [value, *by])
    measured = frame.dropna(subset=value)
    measured = measured.reset_index(drop=True)
    groups = measured.groupby(keys, dropna=False, sort=False)
    places = groups[value].idxmax()
    largest = measured.loc[places]

    def name_commonest(depths: pd.Series) -> str:
        counts = depths.value_counts()
        depth = counts.index[0]
        count = counts.iloc[0]
        if count == len(depths):
            return str(depth)
        return f"{depth} ({count} of {len(depths)})"

    conditions = largest.groupby([*by], dropna=False, sort=False)
    names = conditions["depth"].transform(name_commonest)
    return largest.assign(largest=names)


def _list_statistics(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """List what tells statistics apart, of a frame that has one row for each of them and layer, and these columns."""
    require_columns(frame, [*columns, "depth"])
    keys = [key for key in _STATISTICS if key in frame]
    places = [*keys, "depth"]
    if "channel" in frame:
        places.append("channel")
    require_one_row(frame, places)
    return keys
