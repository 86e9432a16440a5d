"""The two kinds of plot that figures are made of: settings first, then the rows of all panels. No global style."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames.means import MEASURES
from bnlab.harness.reporting.frames.selection import find_first_group, list_differences, name_value
from bnlab.harness.reporting.style import Axis, axis_of, choose_looks, name_series, set_axes

GAP = Axis("gap of the mean (σ)", log=True)
TIMES_THE_BEST = Axis("gap / that of the best fixed momentum", log=True)
ACCURACY = Axis("test accuracy (%)", (0, 102))
LOST = Axis("accuracy lost against exact statistics (points)")
AGAINST_EXACT = Axis("accuracy − that under exact (points)")

_LEVEL: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_LONG_DASHES = (0, (8, 3))
_MARK: dict[str, Any] = {"color": "#999999", "linewidth": 0.9, "linestyle": ":"}
_POINTS: dict[str, Any] = {"fmt": "o", "color": "#0072B2", "markersize": 5, "capsize": 2}


class Plot(ABC):
    """Kind of plot; its colours and rows are chosen from the rows of all panels.

    Attributes:
        intervals: what shows them, for the caption.
    """

    intervals: ClassVar[str] = ""

    @abstractmethod
    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel.

        Args:
            frame: of all panels, with the columns that the class names.
            axes: by panel, which is a value of the column `panel`.
        """

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw rows that are all of one panel."""
        self.draw(frame.assign(panel=""), {"": ax})
        return ax


@dataclass(frozen=True)
class Curves(Plot):
    """Means with their intervals, a line for each value of a column; of columns `x`, `by`, mean, low, high.

    Rows without `x` are levels across the panel: dashed beside the line of their series, with its looks where that has
    no line.

    Attributes:
        x: the column across, numbers or words.
        by: the column of which each value has a colour; `estimator`: each has its own, and shades for its momenta.
        y: the axis of the means.
        level: the name of levels in the legend.
        mark: a value of `x` and its name, a dotted line.
        across: how `x` is drawn; None: as `style.AXES` says.
    """

    intervals: ClassVar[str] = "bands"
    x: str
    by: str
    y: Axis
    level: str = ""
    mark: tuple[float, str] | None = None
    across: Axis | None = None

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`.

        Raises:
            UserError: a series has several rows at one `x` in a panel.
        """
        named = name_series(frame, self.by, self.x)
        _require_one_row(named, [self.x], "series")
        words = self._list_words(named[self.x])
        placed = named.assign(x=_find_places(named[self.x], words))

        looks = choose_looks(placed, self.by)
        is_level = placed["x"].isna()
        with_line = {*placed.loc[~is_level, "series"]}
        has_both = placed.loc[is_level, "series"].isin(with_line).any()
        for panel, ax in axes.items():
            here = placed[placed["panel"] == panel]
            for series, rows in here.groupby("series", sort=False):
                draw = self._draw_series if series in with_line else self._draw_level
                draw(ax, rows, looks[str(series)], str(series))

            _draw_mark(ax, self.mark)
            if self.level and has_both:
                ax.plot([], [], color="#555555", label=self.level, **_LEVEL)
            set_axes(ax, self.across or axis_of(self.x), self.y, here["x"], words)

    @staticmethod
    def _list_words(values: pd.Series) -> list[Any]:
        """List the words that stand across, in order of appearance; none where there are numbers."""
        if pd.api.types.is_numeric_dtype(values):
            return []
        return list(values.dropna().unique())

    def _draw_level(self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """Draw a series that is a level only, with its band, under its name or that of levels."""
        mean, low, high = rows[["mean", "low", "high"]].to_numpy(float)[0]
        colour = look["color"]
        line = look["linestyle"]
        if line == "-":
            line = _LONG_DASHES
        ax.axhline(mean, label=self.level or label, color=colour, linestyle=line)

        if self.y.log and low <= 0:
            low = mean  # on a logarithmic axis the band has no end
        if high > low:  # not where one seed has no interval
            ax.axhspan(low, high, color=colour, alpha=0.1, linewidth=0)

    def _draw_series(self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """Draw the levels of a series, and its line."""
        is_level = rows["x"].isna()
        for level in rows.loc[is_level, "mean"]:
            ax.axhline(level, color=look["color"], **_LEVEL)

        line = rows[~is_level].sort_values("x", kind="stable")
        if len(line) == 1:  # a line would not be seen
            marker = look["marker"] or "o"
            bars = _measure_bars(line)
            ax.errorbar(line["x"], line["mean"], bars, label=label, color=look["color"], fmt=marker)
        elif len(line):
            self._draw_line(ax, line, look, label)

    def _draw_line(self, ax: Axes, line: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """Draw a line with its band; on a logarithmic axis a band that reaches below 0 has no lower end."""
        x = line["x"]
        means = line["mean"]
        low = line["low"]
        if self.y.log:
            means = means.where(means > 0)
            low = low.where(low > 0, means)
        ax.plot(x, means, label=label, markevery=max(1, len(line) // 10), **look)
        ax.fill_between(x, low, line["high"], color=look["color"], alpha=0.15, linewidth=0)


@dataclass(frozen=True)
class Forest(Plot):
    """Means with their intervals across, a row for each value of a column; of columns `by`, mean, low, high.

    Attributes:
        by: the column of which each value has a row, in order of appearance.
        x: the axis of the means.
        mark: where a dotted line is, and its name.
    """

    intervals: ClassVar[str] = "bars"
    by: str
    x: Axis
    mark: tuple[float, str] | None = None

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`; all have one axis across.

        Raises:
            UserError: a name has several rows in a panel.
        """
        _require_one_row(frame, [], self.by)
        names = list(frame[self.by].unique())
        first = next(iter(axes.values()))
        for panel, ax in axes.items():
            here = frame[frame["panel"] == panel]
            if ax is not first:
                ax.sharex(first)
            set_axes(ax, self.x, Axis(""), here["mean"])
            _draw_mark(ax, self.mark)

            heights = [names.index(name) for name in here[self.by]]
            bars = _measure_bars(here)
            ax.errorbar(here["mean"], heights, xerr=bars, **_POINTS)
            _set_rows(ax, names)


def _find_places(values: pd.Series, words: list[Any]) -> pd.Series:
    """Find where values stand across: numbers at their own place, words at 0, 1, ..."""
    if words:
        places = {word: place for place, word in enumerate(words)}
        values = values.map(places)
    return values.astype(float)


def _draw_mark(ax: Axes, mark: tuple[float, str] | None) -> None:
    """Draw a dotted line at a value, under its name."""
    if mark:
        value, name = mark
        ax.axvline(value, label=name, **_MARK)


def _require_one_row(frame: pd.DataFrame, across: list[str], name: str) -> None:
    """Refuse several rows of a line, or of a row of a forest, at one place."""
    keys = ["panel", name, *across]
    doubled = frame[frame.duplicated(keys, keep=False)]
    if doubled.empty:
        return

    same = find_first_group(doubled, keys)
    others = [str(column) for column in frame if column not in (*keys, *MEASURES, "series")]
    differing = list_differences(same, others) or "their numbers only"
    here = same.iloc[0]
    place = "".join(f" at {name_value(column, here[column])}" for column in across)
    raise UserError(
        f"panel {here['panel']!r} has {len(same)} rows of {here[name]!r}{place}, which differ in {differing}\n"
        "put it into the panel's name (name_panels), select one, or average over it"
    )


def _set_rows(ax: Axes, names: list[Any]) -> None:
    """Write names on the axis upwards, the first on top, in letters that have room."""
    rows = len(names)
    size = min(9, 200 / rows)
    ax.set_yticks(range(rows), [str(name) for name in names], fontsize=size)
    ax.set_ylim(rows - 0.5, -0.5)


def _measure_bars(frame: pd.DataFrame) -> np.ndarray:
    """Measure how far `low` is below the mean, and `high` above it: [2, rows], as matplotlib's error bars take them."""
    distances = frame[["low", "high"]].to_numpy() - frame[["mean"]].to_numpy()
    return distances.T * [[-1], [1]]
