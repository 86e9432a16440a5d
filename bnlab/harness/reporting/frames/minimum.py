"""Minima between the values that were swept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames.selection import list_groups, require_columns, require_one_row


def locate_minimum(frame: pd.DataFrame, x: str, y: str, by: Sequence[str]) -> pd.DataFrame:
    """Find where `y` is smallest, between the values of `x` that were swept.

    A parabola through the smallest value and its two neighbours, of the logarithms of both columns, has its vertex
    there. Where the smallest value is the first or the last of the sweep, that end is taken.

    Args:
        frame: rows with positive `x` and `y`; rows where `y` is NaN are left out.
        x: the column that was swept, such as "momentum".
        y: the column whose minimum is wanted, such as "mean_gap".
        by: what is told apart; each combination may have one row for each `x`.

    Returns:
        One row for each combination: `by`, `x` at the minimum, and `at_end`, whether that is an end of the sweep.
    """
    require_columns(frame, [x, y, *by])
    require_one_row(frame, [*by, x])
    measured = frame.dropna(subset=y)
    ordered = measured.sort_values(x, kind="stable")
    minima = []
    for key, group in list_groups(ordered, by):
        swept = group[x].to_numpy(float)
        values = group[y].to_numpy(float)
        vertex, at_end = _find_vertex(np.log(swept), np.log(values))
        place = float(np.exp(vertex))
        minima.append((*key, place, at_end))
    return pd.DataFrame(minima, columns=[*by, x, "at_end"])


def _find_vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, bool]:
    """Find the vertex of the parabola through the lowest point and its neighbours, or the end that is lowest."""
    lowest = int(y.argmin())
    middle = float(x[lowest])
    last = len(x) - 1
    if lowest in (0, last):
        return middle, True

    before = lowest - 1
    behind = lowest + 1
    left = x[before] - middle
    right = x[behind] - middle
    rise_left = y[before] - y[lowest]
    rise_right = y[behind] - y[lowest]

    curvature = rise_left * right - rise_right * left
    slope = rise_left * right**2 - rise_right * left**2
    distance = slope / (2 * curvature)
    return float(middle + distance), False
