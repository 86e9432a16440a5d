"""Curves: a line for each value of a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes

from bnlab.harness.reporting.plots.base import Plot, draw_mark, measure_bars, require_one_row, split_panels
from bnlab.harness.reporting.style import Axis, axis_of, choose_looks, name_series, set_axes

_LEVEL: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_LONG_DASHES = (0, (8, 3))
_SPARSE = 4  # times fewer places than the longest series has
_ABOVE = 3.0  # other lines lie at 2


@dataclass(frozen=True)
class Curves(Plot):
    """Means with their intervals, a line for each value of a column; of columns `x`, `by`, mean, low, high.

    Rows without `x` are levels across the panel: dashed beside the line of their series, with its looks where that has
    no line. A series that was measured at far fewer places than the longest one of its panel is drawn as points, since
    what it does between them is not known. Broken lines lie above solid ones, so that both are seen where they agree.
    Rows that a column `hollow` marks as true have a hollow circle.

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
        require_one_row(named, [self.x], "series")
        words = _list_words(named[self.x])
        places = _find_places(named[self.x], words)
        placed = named.assign(x=places)

        looks = choose_looks(placed, self.by)
        across = self.across or axis_of(self.x)
        series_of_rows = placed["series"]
        has_place = placed["x"].notna()
        lines = {*series_of_rows[has_place]}
        levels = {*series_of_rows[~has_place]}
        has_levels_beside_lines = not lines.isdisjoint(levels)

        for ax, here in split_panels(placed, axes):
            longest = here.groupby("series")["x"].count().max()
            for series, rows in here.groupby("series", sort=False):
                label = str(series)
                look = looks[label]
                if label in lines:
                    self._draw_series(ax, rows, look, label, longest)
                else:
                    self._draw_level(ax, rows, look, label)

            draw_mark(ax, self.mark)
            if self.level and has_levels_beside_lines:
                ax.plot([], [], color="#555555", label=self.level, **_LEVEL)
            set_axes(ax, across, self.y, here["x"], words)

    def _draw_level(self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """Draw a series that is a level only, with its band, under its name or that of levels."""
        first = rows.iloc[0]
        mean = first["mean"]
        low = first["low"]
        high = first["high"]

        colour = look["color"]
        style = look["linestyle"]
        if style == "-":
            style = _LONG_DASHES
        ax.axhline(mean, label=self.level or label, color=colour, linestyle=style, zorder=_ABOVE)

        if self.y.log and low <= 0:
            low = mean  # on a logarithmic axis the band has no end
        if high > low:  # not where one seed has no interval
            ax.axhspan(low, high, color=colour, alpha=0.1, linewidth=0)

    def _draw_series(self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str, longest: int) -> None:
        """Draw the levels of a series, and its line, or points if it has far fewer than the longest series."""
        is_level = rows["x"].isna()
        levels = rows[is_level]
        for mean in levels["mean"]:
            ax.axhline(mean, color=look["color"], **_LEVEL)

        line = rows[~is_level].sort_values("x", kind="stable")
        if line.empty:
            return
        if len(line) == 1 or len(line) * _SPARSE < longest:
            _draw_points(ax, line, look, label)
        else:
            self._draw_line(ax, line, look, label)
        if "hollow" in line:
            _mark_hollow(ax, line[line["hollow"]], look)

    def _draw_line(self, ax: Axes, line: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """Draw a line with its band; on a logarithmic axis a band that reaches below 0 has no lower end."""
        x = line["x"]
        means = line["mean"]
        low = line["low"]
        high = line["high"]
        if self.y.log:
            means = means.where(means > 0)
            low = low.where(low > 0, means)

        points = len(line)
        between_markers = max(1, points // 10)
        colour = look["color"]
        height = _choose_height(look)
        ax.plot(x, means, label=label, markevery=between_markers, zorder=height, **look)
        if high.notna().any():  # one seed has no interval
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _mark_hollow(ax: Axes, points: pd.DataFrame, look: dict[str, Any]) -> None:
    """Draw hollow circles at points, above their line."""
    ax.plot(points["x"], points["mean"], "o", color=look["color"], markerfacecolor="white", zorder=_ABOVE + 1)


def _choose_height(look: dict[str, Any]) -> float:
    """Choose at which height a line lies: a broken one above solid ones."""
    if look["linestyle"] == "-":
        return 2.0
    return _ABOVE


def _draw_points(ax: Axes, points: pd.DataFrame, look: dict[str, Any], label: str) -> None:
    """Draw means with their bars, without a line between them."""
    marker = look["marker"] or "D"
    bars = measure_bars(points)
    size = 0.8 * rcParams["lines.markersize"]
    ax.errorbar(
        points["x"],
        points["mean"],
        bars,
        label=label,
        color=look["color"],
        fmt=marker,
        markersize=size,
        zorder=_ABOVE,
    )


def _list_words(values: pd.Series) -> list[Any]:
    """List the words that stand across, in order of appearance; none where there are numbers."""
    if pd.api.types.is_numeric_dtype(values):
        return []
    return list(values.dropna().unique())


def _find_places(values: pd.Series, words: list[Any]) -> pd.Series:
    """Find where values stand across: numbers at their own place, words at 0, 1, ..."""
    if words:
        places = {word: place for place, word in enumerate(words)}
        values = values.map(places)
    return values.astype(float)
