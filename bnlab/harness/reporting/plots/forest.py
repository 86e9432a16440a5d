"""Forest plots: the values of a column one below the other, each with its mean and interval."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness.reporting.frames.selection import name_value
from bnlab.harness.reporting.plots.base import Plot, draw_mark, measure_bars, require_one_row, split_panels
from bnlab.harness.reporting.style import SERIES, Axis, set_axes

_MARKERS = ("o", "s", "^", "D", "v", "P")  # of series, beside their colours
_LETTERS = 24  # of a name, in a line
_SPREAD = 0.75  # of the distance between two names, which the series of one share
_POINT = 0.55  # lines that a point takes among several at one name
_GAP = 0.3  # lines between names


@dataclass(frozen=True)
class Forest(Plot):
    """Means with horizontal bars for their intervals, one below the other for each value of a column.

    Draws frames with the columns `by`, mean, low and high.

    Attributes:
        by: the column whose values are listed from top to bottom, in order of appearance.
        x: the horizontal axis, that of the means.
        mark: where a dotted vertical line is, and its name in the legend.
        series: a column of which each value has a colour, close below each other at each name; empty: all have one.
    """

    intervals: ClassVar[str] = "bars"
    by: str
    x: Axis
    mark: tuple[float, str] | None = None
    series: str = ""

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`; all panels have the same horizontal axis and names.

        Raises:
            UserError: a panel has several rows for one value of `by`, of one series.
        """
        across = [self.series] if self.series else []
        require_one_row(frame, across, self.by)
        names = list(frame[self.by].unique())
        height_of_name = {name: height for height, name in enumerate(names)}
        series = self._list_series(frame)
        first = next(iter(axes.values()))

        for ax, panel in split_panels(frame, axes):
            if ax is not first:
                ax.sharex(first)
            set_axes(ax, self.x, Axis(""), frame["mean"])  # of all panels: a shared axis has the same ticks in each
            draw_mark(ax, self.mark)

            for place, value in enumerate(series):
                rows = panel
                label = None
                if self.series:
                    is_of_series = panel[self.series] == value
                    rows = panel[is_of_series]
                    label = name_value(self.series, value)

                heights = rows[self.by].map(height_of_name).astype(float)
                shift = _find_shift(place, len(series))
                _draw_points(ax, rows, heights + shift, place, label)
            _write_names(ax, names)

    def count_lines(self, frame: pd.DataFrame) -> float:
        """Count the lines that names take, or points below each other."""
        names = frame[self.by].unique()
        lines_of_names = [textwrap.wrap(str(name), _LETTERS) for name in names]
        of_a_name = max(map(len, lines_of_names))

        series = self._list_series(frame)
        of_series = _POINT * len(series)

        of_each = max(of_a_name + _GAP, of_series + 2 * _GAP)
        return 1 + len(names) * of_each

    def _list_series(self, frame: pd.DataFrame) -> list[Any]:
        """List the values that have a colour each: numbers, and words in order of appearance; one without a column."""
        if not self.series:
            return [None]
        values = list(frame[self.series].unique())
        is_number = pd.api.types.is_numeric_dtype(frame[self.series])
        return sorted(values) if is_number else values


def _find_shift(place: int, count: int) -> float:
    """Find how far a series is from the height of its name: they lie around it, the first on top."""
    middle = (count - 1) / 2
    return _SPREAD * (place - middle) / max(1, count)


def _draw_points(ax: Axes, rows: pd.DataFrame, y: pd.Series, place: int, label: str | None) -> None:
    """Draw one series at its heights."""
    colour = SERIES[(place + 1) % len(SERIES)]
    marker = _MARKERS[place % len(_MARKERS)]
    bars = measure_bars(rows)
    ax.errorbar(
        rows["mean"],
        y,
        xerr=bars,
        fmt=marker,
        color=colour,
        capsize=2,
        label=label,
    )


def _write_names(ax: Axes, names: list[Any]) -> None:
    """Write names beside the vertical axis, the first on top."""
    count = len(names)
    heights = np.arange(count)
    wrapped = [textwrap.fill(str(name), _LETTERS) for name in names]
    ax.set_yticks(heights, wrapped)
    ax.set_ylim(count - 0.5, -0.5)  # heights grow downwards
