"""The kinds of plot that figures are made of: settings first, then the rows of all panels."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from bnlab.harness.reporting.means import require_one_row
from bnlab.harness.reporting.style import SERIES, Axis, axis_of, choose_looks, include_zero, set_axes
from bnlab.harness.reporting.wording import list_values, name_value

__all__ = [
    "ACCURACY",
    "GAP",
    "LOST",
    "LOST_OF_ANY_SIZE",
    "MARK",
    "TIMES_THE_BEST",
    "Axis",
    "Curves",
    "Dots",
    "Forest",
    "Plot",
    "split_panels",
]

GAP = Axis("gap of the mean (σ)", log=True)
TIMES_THE_BEST = Axis("gap / that of the best fixed momentum", log=True)
# Up to 102, because the frame would cut off half of a line or a marker at 100%.
ACCURACY = Axis("test accuracy (%)", (0, 102))
LOST = Axis("accuracy lost against exact statistics (points)")
LOST_OF_ANY_SIZE = replace(LOST, linear=0.3)  # up to what claims call harmless

MARK: dict[str, Any] = {"color": "#999999", "linewidth": 0.9, "linestyle": ":"}
"""How a line at a value that has a name looks."""
_GREYS = ("#4d4d4d", "#8c8c8c", "#b3b3b3")  # of numbers that a paper prints
_LEVEL: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_SPARSE = 4  # times fewer places than the longest series has
_OPACITY = 0.15  # of a band
_CLEAR = 4  # so many bands lie above each other before they are made fainter
_ABOVE = 3.0  # other lines lie at 2


class Plot(ABC):
    """A kind of plot, which draws all panels of a figure at once, so that a colour or place means the same in each.

    Attributes:
        intervals: the shapes by which it shows intervals, such as "bands", for the caption; empty: it shows none.
    """

    intervals: ClassVar[str] = ""

    @abstractmethod
    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel.

        Args:
            frame: the rows of all panels, with the column `panel` and those that the class names.
            axes: for each value of `panel`, the axes to draw on.

        Raises:
            UserError: several rows would be drawn at one place of a panel.
        """

    def count_lines(self, frame: pd.DataFrame) -> float:
        """Count the lines of words that a panel has one below the other; it is made as high as they take."""
        return 0.0

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw rows on one pair of axes, as a single panel."""
        self.draw(frame.assign(panel=""), {"": ax})
        return ax


def split_panels(frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Yield the axes of each panel with its rows."""
    for panel, ax in axes.items():
        yield ax, frame[frame["panel"] == panel]


def _draw_mark(ax: Axes, mark: tuple[float, str] | None) -> None:
    """Draw a dotted vertical line at a value, with its name for the legend; nothing if there is no mark."""
    if mark is not None:
        value, name = mark
        ax.axvline(value, label=name, **MARK)


def _measure_bars(frame: pd.DataFrame) -> np.ndarray:
    """Measure how far intervals reach below and above their means: [2, rows], for matplotlib's `errorbar`."""
    return np.stack([frame["mean"] - frame["low"], frame["high"] - frame["mean"]])


@dataclass(frozen=True)
class Curves(Plot):
    """Means with their intervals, a line for each value of a column; of columns `x`, `by`, mean, low, high.

    Rows without `x` are levels across the panel: dashed beside the line of their series, with its looks where that has
    no line. A series that was measured at far fewer places than the longest one of its panel is drawn as points, since
    what it does between them is not known. Broken lines lie above solid ones, so that both are seen where they agree.
    Rows that a column `hollow` marks as true have a hollow circle and no band; those that a column `printed` marks are
    grey, as numbers of a paper.

    Attributes:
        x: the column across, numbers or words.
        by: the column of which each value has a colour; `estimator`: each has its own, and shades for its momenta.
        y: the axis of the means.
        level: the name of levels in the legend.
        mark: a value of `x` and its name, a dotted line.
        across: how `x` is drawn; None: as `style.axis_of` says.
    """

    intervals: ClassVar[str] = "bands"
    x: str
    by: str
    y: Axis
    level: str = ""
    mark: tuple[float, str] | None = None
    across: Axis | None = None

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        # Looks come from the rows of all panels, so that a series looks the same in each.
        named, looks = choose_looks(frame, self.by, self.x)
        if "printed" in named:
            for number, name in enumerate(named["series"].unique()):
                looks[name] = {"color": _GREYS[number % 3], "linestyle": "-", "marker": "os^Dv"[number % 5]}
        require_one_row(named, ["panel", "series", self.x])
        x_values = named[self.x]
        positions = x_values
        words: list[Any] = []
        if not pd.api.types.is_numeric_dtype(x_values):
            words = list(x_values.dropna().unique())  # they stand at 0, 1, ...
            positions = x_values.map({word: position for position, word in enumerate(words)})
        placed = named.assign(x=positions.astype(float))

        # Series that have a line in any panel. The others are levels only, and enter the legend as such.
        lines = {*placed.loc[placed["x"].notna(), "series"]}
        has_levels_beside_lines = placed.loc[placed["x"].isna(), "series"].isin(lines).any()

        # From the rows of all panels, too: either all of them have a place for 0, or none has.
        across = include_zero(self.across or axis_of(self.x, named[self.x]), placed["x"])
        for ax, here in split_panels(placed, axes):
            opacity = _OPACITY * min(1.0, _CLEAR / here["series"].nunique()) ** 2
            longest = here.groupby("series")["x"].count().max()
            for series, rows in here.groupby("series", sort=False):
                label = str(series)
                if label in lines:
                    self._draw_series(ax, rows, looks[label], label, longest, opacity)
                else:
                    # There is one row: `require_one_row` counts rows without `x` as being at one place.
                    self._draw_level(ax, rows.iloc[0], looks[label], label, opacity)
            _draw_mark(ax, self.mark)
            # Levels beside lines have no label of their own: an empty line stands for them in the legend.
            if self.level and has_levels_beside_lines:
                ax.plot([], [], color="#555555", label=self.level, **_LEVEL)
            set_axes(ax, across, self.y, here["x"], words)

    def _draw_level(self, ax: Axes, row: pd.Series, look: dict[str, Any], label: str, opacity: float) -> None:
        """Draw a series that is a level only, with its band, under its name or that of levels."""
        mean = row["mean"]
        low = row["low"]
        high = row["high"]
        colour = look["color"]
        style = look["linestyle"]
        if style == "-":
            style = (0, (8, 3))  # long dashes
        ax.axhline(mean, label=self.level or label, color=colour, linestyle=style, zorder=_ABOVE)

        if self.y.log and low <= 0:
            low = mean  # on a logarithmic axis the band has no end
        if high > low:  # not where one seed has no interval
            ax.axhspan(low, high, color=colour, alpha=0.7 * opacity, linewidth=0)

    def _draw_series(
        self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str, longest: int, opacity: float
    ) -> None:
        """Draw the levels of a series, and its line, or points if it has far fewer than the longest series."""
        is_level = rows["x"].isna()
        for mean in rows.loc[is_level, "mean"]:
            ax.axhline(mean, color=look["color"], **_LEVEL)

        line = rows[~is_level].sort_values("x", kind="stable")
        if line.empty:
            return
        # A line through a single point would not be seen.
        if len(line) == 1 or len(line) * _SPARSE < longest:
            points: dict[str, Any] = {"fmt": look["marker"] or "D", "markersize": 4.3, "zorder": _ABOVE}
            ax.errorbar(line["x"], line["mean"], _measure_bars(line), label=label, color=look["color"], **points)
        else:
            self._draw_line(ax, line, look, label, opacity)
        if "hollow" in line:
            hollow = line[line["hollow"]]
            circles = {"color": look["color"], "markerfacecolor": "white", "zorder": _ABOVE + 1}
            ax.plot(hollow["x"], hollow["mean"], "o", **circles)

    def _draw_line(self, ax: Axes, line: pd.DataFrame, look: dict[str, Any], label: str, opacity: float) -> None:
        """Draw a line with its band; on a logarithmic axis a band that reaches below 0 has no lower end."""
        x = line["x"]
        means = line["mean"]
        low = line["low"]
        high = line["high"]
        if "hollow" in line:
            low = low.mask(line["hollow"])
            high = high.mask(line["hollow"])
        if self.y.log:
            # Otherwise matplotlib would draw the line down to the lower end of the axis.
            means = means.where(means > 0)
            low = low.where(low > 0, means)

        colour = look["color"]
        # About ten markers a line, so that the line is still seen between them.
        between_markers = max(1, len(line) // 10)
        is_solid = look["linestyle"] == "-"
        height = 2.0 if is_solid else _ABOVE
        ax.plot(x, means, label=label, markevery=between_markers, zorder=height, **look)
        if high.notna().any():  # one seed has no interval
            ax.fill_between(x, low, high, color=colour, alpha=opacity, linewidth=0)
        # A band reaches from one point to the next, and would not show an interval between two points without any.
        is_alone = high.notna() & high.shift().isna() & high.shift(-1).isna()
        if is_alone.any():
            ax.vlines(x[is_alone], low[is_alone], high[is_alone], color=colour, alpha=0.5)


@dataclass(frozen=True)
class Forest(Plot):
    """Means with horizontal bars for their intervals, one below the other for each value of a column.

    Draws frames with the columns `by`, mean, low and high; in grey those with a column `printed`, a paper's numbers.

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
        """Draw the rows of each panel, see `Plot.draw`; all panels have the same horizontal axis and names."""
        series_columns = [self.series] if self.series else []
        require_one_row(frame, ["panel", self.by, *series_columns])
        ours = SERIES if self.series else SERIES[1:2]
        colours = _GREYS if "printed" in frame else ours
        names = list(frame[self.by].unique())
        height_of_name = {name: height for height, name in enumerate(names)}
        series = self._list_series(frame)
        first = next(iter(axes.values()))

        for ax, panel in split_panels(frame, axes):
            # `drawing.draw` lets panels share the vertical axis only.
            if ax is not first:
                ax.sharex(first)
            set_axes(ax, self.x, Axis(""), frame["mean"])  # of all panels: a shared axis has the same ticks in each
            _draw_mark(ax, self.mark)
            for number, value in enumerate(series):
                rows = panel
                label = None
                if self.series:
                    rows = panel[panel[self.series] == value]
                    label = name_value(self.series, value)
                # Series lie around the height of their name, the first on top. A quarter of the distance to
                # the next name stays empty, so that it is seen which points belong to which name.
                shift = 0.75 * (number - (len(series) - 1) / 2) / len(series)
                heights = rows[self.by].map(height_of_name).astype(float) + shift
                marker = "os^DvP"[number % 6]
                colour = colours[number % len(colours)]
                bars = _measure_bars(rows)
                ax.errorbar(rows["mean"], heights, xerr=bars, fmt=marker, color=colour, capsize=2, label=label)

            wrapped = [textwrap.fill(str(name), 24) for name in names]
            ax.set_yticks(np.arange(len(names)), wrapped)
            ax.set_ylim(len(names) - 0.5, -0.5)  # heights grow downwards

    def count_lines(self, frame: pd.DataFrame) -> float:
        """Count the lines that names take, or points below each other, with a gap between names."""
        names = frame[self.by].unique()
        lines_of_longest_name = max(len(textwrap.wrap(str(name), 24)) for name in names)
        lines_of_points = 0.55 * len(self._list_series(frame)) + 0.3
        return 1 + len(names) * (max(lines_of_longest_name, lines_of_points) + 0.3)

    def _list_series(self, frame: pd.DataFrame) -> list[Any]:
        """List the values that have a colour each: numbers, and words in order of appearance."""
        if not self.series:
            return [""]
        column = frame[self.series]
        values = list(column.unique())
        return sorted(values) if pd.api.types.is_numeric_dtype(column) else values


@dataclass(frozen=True)
class Dots(Plot):
    """A dot for each row, none of which is a mean; of columns `x`, `by`, mean, run, data and model.

    Panels show the same networks in several ways. The first one says which these are, and how many, in its upper left
    corner: this plot is for what grows from left to right, which leaves that corner empty.

    Attributes:
        x: the column across.
        by: a column of numbers, which have colours; the smaller, the darker.
        across: the axis of `x`.
        y: the axis of the column `mean`.
    """

    x: str
    by: str
    across: Axis
    y: Axis

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        values = sorted(frame[self.by].unique())
        shades = colormaps["plasma"](np.linspace(0, 0.85, len(values)))  # beyond, it is too light on white
        colours = dict(zip(values, shades, strict=True))
        # In the order of the table one colour would lie above all others.
        shuffled = frame.sample(frac=1, random_state=0)
        first = next(iter(axes.values()))
        for ax, dots in split_panels(shuffled, axes):
            # `drawing.draw` lets panels share the vertical axis only.
            if ax is not first:
                ax.sharex(first)
            set_axes(ax, self.across, self.y, dots[self.x])
            if self.across.log:
                # Half a power of ten apart, as upwards where values have both signs.
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                ax.xaxis.set_minor_locator(NullLocator())
                ax.xaxis.set_major_formatter("{x:g}")
            ax.axhline(0, color="#777777", linewidth=0.9)
            ax.scatter(dots[self.x], dots["mean"], s=15, c=[*dots[self.by].map(colours)], alpha=0.65, linewidths=0)

        _, dots = next(split_panels(frame, axes))
        for value, colour in colours.items():
            count = (dots[self.by] == value).sum()
            first.scatter([], [], s=30, color=colour, label=f"{name_value(self.by, value)} ({count} dots)")
        settings = ", ".join(name_value(column, list_values(dots[column])) for column in ("data", "model"))
        words = f"{settings}\n{dots['run'].nunique()} networks, {len(dots)} dots"
        first.text(0.03, 0.98, words, transform=first.transAxes, verticalalignment="top", fontsize="small")
