"""The kinds of plot that figures are made of: curves, lists downwards, dots and maps."""

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
from matplotlib.colors import LinearSegmentedColormap, SymLogNorm

from bnlab.harness.reporting.axes import Axis, axis_of, include_zero, set_axes
from bnlab.harness.reporting.looks import GREYS, LEVEL, MARK, MARKERS, choose_looks, find_kind
from bnlab.harness.reporting.means import require_one_row
from bnlab.harness.reporting.wording import write_value

__all__ = [
    "ACCURACY",
    "GAP",
    "LOST",
    "LOST_OF_ANY_SIZE",
    "MARK",
    "TIMES_THE_BEST",
    "Axis",
    "Cells",
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

_SPARSE = 4  # times fewer places than the longest series has
_OPACITY = 0.15  # of a band
_CLEAR = 4  # so many bands lie above each other before they are made fainter
_ABOVE = 3.0  # other lines lie at 2
_UNREAD = "#e4e4e4"  # of cells that are not to be read
_INTERVAL = 0.7  # inches across that an interval takes in a cell


class Plot(ABC):
    """A kind of plot, which draws all panels of a figure at once, so that a colour or place means the same in each.

    Attributes:
        intervals: the shapes by which it shows intervals, such as "bands", for the caption; empty: it shows none.
        panels_across: how many of its panels stand side by side at most. Words stay legible on a telephone.
        shares_y: whether all panels have one vertical axis.
    """

    intervals: ClassVar[str] = ""
    panels_across: ClassVar[int] = 3
    shares_y: bool = True

    @abstractmethod
    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel.

        Args:
            frame: the rows of all panels, with the column `panel` and those that the class names.
            axes: for each value of `panel`, the axes to draw on.

        Raises:
            UserError: several rows would be drawn at one place of a panel.
        """

    def find_height(self, frame: pd.DataFrame) -> float:
        """Find how high a panel is at least, in inches, for what stands one below the other in it."""
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
    Rows that a column `printed` marks are grey, as numbers of a paper. With a column `seed` each seed has a thin line
    of its own.

    Attributes:
        x: the column across, numbers or words.
        by: the column of which each value has a colour; `estimator`: each has its own, and shades for its momenta.
        y: the axis of the means.
        level: the name of levels in the legend.
        mark: a value of `x` and its name, a dotted line.
        across: how `x` is drawn; None: as `axes.axis_of` says.
        shares_y: whether all panels have the axis `y`; otherwise their names say what is drawn.
    """

    intervals: ClassVar[str] = "bands"
    x: str
    by: str
    y: Axis
    level: str = ""
    mark: tuple[float, str] | None = None
    across: Axis | None = None
    shares_y: bool = True

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        # Looks come from the rows of all panels, so that a series looks the same in each.
        named, looks = choose_looks(frame, self.by, self.x)
        if "printed" in named:
            for number, look in enumerate(looks.values()):
                look |= {"color": GREYS[number % 3], "linestyle": "-", "marker": MARKERS[number % 6]}
        seeds = ["seed"] if "seed" in named else []
        require_one_row(named, ["panel", "series", self.x, *seeds])
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
            longest = here.groupby(["series", *seeds])["x"].count().max()
            for (series, *_), rows in here.groupby(["series", *seeds], sort=False):
                label = str(series)
                if label in lines:
                    self._draw_series(ax, rows, looks[label], label, longest, opacity)
                else:
                    # There is one row: `require_one_row` counts rows without `x` as being at one place.
                    self._draw_level(ax, rows.iloc[0], looks[label], label, opacity)
            _draw_mark(ax, self.mark)
            # Levels beside lines have no label of their own: an empty line stands for them in the legend.
            if self.level and has_levels_beside_lines:
                ax.plot([], [], color="#555555", label=self.level, **LEVEL)
            set_axes(ax, across, self.y, here["x"], words)
            low, high = ax.get_ylim()
            if low < 0 < high:
                ax.axhline(0, color="#777777", linewidth=0.9, zorder=1)

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
            ax.axhline(mean, color=look["color"], **LEVEL)

        line = rows[~is_level].sort_values("x", kind="stable")
        if line.empty:
            return
        # A line through a single point would not be seen.
        if len(line) == 1 or len(line) * _SPARSE < longest:
            points: dict[str, Any] = {"fmt": look["marker"] or "D", "markersize": 4.3, "zorder": _ABOVE}
            ax.errorbar(line["x"], line["mean"], _measure_bars(line), label=label, color=look["color"], **points)
        else:
            self._draw_line(ax, line, look, label, opacity)

    def _draw_line(self, ax: Axes, line: pd.DataFrame, look: dict[str, Any], label: str, opacity: float) -> None:
        """Draw a line with its band; on a logarithmic axis a band that reaches below 0 has no lower end."""
        x = line["x"]
        means = line["mean"]
        low = line["low"]
        high = line["high"]
        if self.y.log:
            # Otherwise matplotlib would draw the line down to the lower end of the axis.
            means = means.where(means > 0)
            low = low.where(low > 0, means)

        colour = look["color"]
        # About ten markers a line, so that the line is still seen between them.
        between_markers = max(1, len(line) // 10)
        is_solid = look["linestyle"] == "-"
        height = 2.0 if is_solid else _ABOVE
        width = 0.9 if "seed" in line else None
        ax.plot(x, means, label=label, markevery=between_markers, zorder=height, linewidth=width, **look)
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
        series: a column of which each value has a colour, close below each other at each name. Without one, a name has
            the colour of the kind of statistics that it names, or grey.
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
        names = list(frame[self.by].unique())
        named, looks = choose_looks(frame, self.series or self.by)
        for number, (name, look) in enumerate(looks.items()):
            if "printed" in frame and self.series:
                look["color"] = GREYS[number % 3]
            elif not self.series and ("printed" in frame or find_kind(name) is None):
                look["color"] = GREYS[0]
        named["height"] = named[self.by].map({name: height for height, name in enumerate(names)}).astype(float)

        first = next(iter(axes.values()))
        for ax, panel in split_panels(named, axes):
            # `drawing.draw` lets panels share the vertical axis only.
            if ax is not first:
                ax.sharex(first)
            for number, (name, look) in enumerate(looks.items()):
                rows = panel[panel["series"] == name]
                bars: dict[str, Any] = {"color": look["color"], "capsize": 2}
                if not self.series:
                    ax.errorbar(rows["mean"], rows["height"], xerr=_measure_bars(rows), fmt="o", **bars)
                    continue
                # Series lie around the height of their name, the first on top. A quarter of the distance to
                # the next name stays empty, so that it is seen which points belong to which name.
                shift = 0.75 * (number - (len(looks) - 1) / 2) / len(looks)
                bars |= {"fmt": MARKERS[number % 6], "label": name}
                ax.errorbar(rows["mean"], rows["height"] + shift, xerr=_measure_bars(rows), **bars)
            _draw_mark(ax, self.mark)
            set_axes(ax, self.x, Axis(""), frame["mean"])  # of all panels: a shared axis has the same ticks in each
            ax.set_yticks(range(len(names)), [textwrap.fill(str(name), 24) for name in names])
            ax.set_ylim(len(names) - 0.5, -0.5)  # heights grow downwards

    def find_height(self, frame: pd.DataFrame) -> float:
        """Find how high a panel is, in inches: its names take two lines of words, or points below each other."""
        points = frame[self.series].nunique() if self.series else 1
        return frame[self.by].nunique() * max(0.36, 0.1 + 0.11 * points)


@dataclass(frozen=True)
class Dots(Plot):
    """A dot for each row, none of which is a mean; of columns `x`, `by` and mean. Panels show the same networks.

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
        named, looks = choose_looks(frame, self.by)
        # In the order of the table one colour would lie above all others.
        shuffled = named.sample(frac=1, random_state=0)
        first = next(iter(axes.values()))
        for ax, dots in split_panels(shuffled, axes):
            # `drawing.draw` lets panels share the vertical axis only.
            if ax is not first:
                ax.sharex(first)
            ax.axhline(0, color="#777777", linewidth=0.9)
            colours = [looks[name]["color"] for name in dots["series"]]
            ax.scatter(dots[self.x], dots["mean"], s=15, c=colours, alpha=0.65, linewidths=0)
            set_axes(ax, self.across, self.y, dots[self.x])

        _, dots = next(split_panels(named, axes))
        counts = dots["series"].value_counts()
        for name, look in looks.items():
            first.scatter([], [], s=30, color=look["color"], label=f"{name} ({counts.get(name, 0)} dots)")


@dataclass(frozen=True)
class Cells(Plot):
    """A map: a number with its interval for each pair of settings, the larger the darker.

    Draws frames with the columns `x`, `by`, `read`, and those of `means.interval`. All panels have the same rows; each
    has the columns that it has cells of. They stand below each other, so that intervals can be read.

    Attributes:
        x: the column across; numbers, or words in the order of their rows.
        by: the column whose values are rows from top to bottom; numbers, or words in the order of their rows.
        read: a column that is true where the number can be read; other cells are grey.
        across: what the columns are, for each panel.
        upward: what the rows are.
        shown: what numbers and colours are, beside the scale.
        unread: what grey cells are, in the legend.
        scale: where the scale of colours begins to be logarithmic, and where it ends.
    """

    intervals: ClassVar[str] = "brackets"
    panels_across: ClassVar[int] = 1
    x: str
    by: str
    read: str
    across: Mapping[str, str]
    upward: str
    shown: str
    unread: str
    scale: tuple[float, float] = (0.3, 30.0)

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        require_one_row(frame, ["panel", self.by, self.x])
        rows = _list_in_order(frame[self.by])
        linear, largest = self.scale
        # A gain is as pale as no loss.
        norm = SymLogNorm(linear, linscale=0.6, vmin=0.0, vmax=largest, clip=True)
        # Black numbers are read on its darkest colour.
        shades = colormaps["OrRd"](np.linspace(0, 0.7, 64))
        colours = LinearSegmentedColormap.from_list("losses", shades).with_extremes(bad=_UNREAD)
        for panel, (ax, here) in zip(axes, split_panels(frame, axes), strict=True):
            columns = _list_in_order(here[self.x])
            means = here.pivot(index=self.by, columns=self.x, values="mean").reindex(index=rows, columns=columns)
            can_be_read = here.pivot(index=self.by, columns=self.x, values=self.read).reindex_like(means)
            image = ax.imshow(means.where(can_be_read.eq(True)), colours, norm, aspect="auto")
            has_room = ax.bbox.width / ax.figure.dpi > _INTERVAL * len(columns)
            for cell in here.to_dict("records"):
                self._write_cell(ax, columns.index(cell[self.x]), rows.index(cell[self.by]), cell, has_room)
            ax.set_xticks(range(len(columns)), map(write_value, columns))
            ax.set_yticks(range(len(rows)), map(write_value, rows))
            ax.set(xlabel=self.across[panel], ylabel=self.upward)
            # Tick marks, grid and axis lines would only cross the cells.
            ax.tick_params(length=0)
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
            if not can_be_read.all(axis=None):
                ax.bar([0], [0], color=_UNREAD, label=self.unread)

        bar = ax.figure.colorbar(image, ax=[*axes.values()], label=self.shown, ticks=[0, 0.3, 1, 3, 10, 30])
        bar.ax.yaxis.set_major_formatter("{x:g}")

    def _write_cell(self, ax: Axes, column: int, row: int, values: Mapping[Any, Any], has_room: bool) -> None:
        """Write the number of a cell, and in small its interval below it, where there is room."""
        colour = "black" if values[self.read] else "#8c8c8c"
        words: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
        ax.text(column, row - 0.14, _write_number(values["mean"]), **words)
        interval = f"{_write_number(values['low'])} to {_write_number(values['high'])}"
        if values["n"] > 1 and has_room:
            ax.text(column, row + 0.26, interval, fontsize="x-small", **words)

    def find_height(self, frame: pd.DataFrame) -> float:
        """Find how high a panel is, in inches: two lines of words a row."""
        return 0.42 * frame[self.by].nunique()


def _list_in_order(values: pd.Series) -> list[Any]:
    """List the different values: numbers by size, words in the order of their rows."""
    different = list(values.unique())
    return sorted(different) if pd.api.types.is_numeric_dtype(values) else different


def _write_number(value: float) -> str:
    """Write a number with one decimal; −0.04 is 0.0, and the hyphen becomes a minus sign."""
    return f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")
