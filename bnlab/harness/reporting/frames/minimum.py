"""Minima of swept curves, located between the values that were swept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames.selection import list_groups, require_columns, require_one_row


def locate_minimum(frame: pd.DataFrame, x: str, y: str, by: Sequence[str]) -> pd.DataFrame:
    """Locate the `x` at which `y` is smallest, between the values of `x` that were swept.

    It is the vertex of the parabola through the smallest measured value and its two neighbours, in the logarithms of
    both columns. If the smallest value is the first or the last of the sweep, it is that end.

    Args:
        frame: rows with positive `x` and `y`; rows where `y` is NaN are left out.
        x: the column that was swept, such as "momentum".
        y: the column whose minimum is wanted, such as "mean_gap".
        by: columns whose combinations of values are separate sweeps; each has at most one row for each `x`.

    Returns:
        One row for each combination that has values: `by`, `x` at the minimum, and `at_end`, whether that is an end of
        the sweep.
    """
    require_columns(frame, [x, y, *by])
    require_one_row(frame, [*by, x])
    measured = frame.dropna(subset=y)
    ordered = measured.sort_values(x, kind="stable")

    minima = []
    for key, sweep in list_groups(ordered, by):
        swept = sweep[x].to_numpy(float)
        values = sweep[y].to_numpy(float)
        log_x = np.log(swept)
        log_y = np.log(values)
        lowest = int(log_y.argmin())
        last = len(sweep) - 1
        at_end = lowest in (0, last)
        log_minimum = log_x[lowest]
        if not at_end:
            points = slice(lowest - 1, lowest + 2)
            log_minimum = _find_vertex(log_x[points], log_y[points])
        minimum = float(np.exp(log_minimum))
        minima.append((*key, minimum, at_end))
    return pd.DataFrame(minima, columns=[*by, x, "at_end"])


def _find_vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Find the x of the vertex of the parabola through three points, of which the middle one is the lowest."""
    x_left, x_lowest, x_right = x
    y_left, y_lowest, y_right = y
    left = x_left - x_lowest
    right = x_right - x_lowest
    rise_left = y_left - y_lowest
    rise_right = y_right - y_lowest

    # With the lowest point as origin the parabola is a·x² + b·x, and its vertex is at −b / 2a. The two other points
    # lie on it, which gives a and b up to the same factor.
    a = rise_left * right - rise_right * left
    minus_b = rise_left * right**2 - rise_right * left**2
    vertex = minus_b / (2 * a)
    return float(x_lowest + vertex)
