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
from bnlab.harness.reporting.frames.selection import list_differences, name_value
from bnlab.harness.reporting.style import Axis, axis_of, choose_looks, name_series, set_axes

GAP = Axis("gap of the mean (σ)", log=True)
TIMES_THE_BEST = Axis("gap / that of the best fixed momentum", log=True)
ACCURACY = Axis("test accuracy (%)", (0, 102))
LOST = Axis("accuracy lost against exact statistics (points)")
AGAINST_EXACT = Axis("accuracy − that under exact (points)")

_LEVEL: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_LONG_DASHES = (0, (8, 3))
_MARK: dict[str, Any] = {"color": "#999999", "linewidth": 0.9, "linestyle": ":"}


class Plot(ABC):
    """A kind of plot; its colours and rows are chosen from the rows of all panels.

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
        frame = name_series(frame, self.by, self.x)
        _require_one_row(frame, [self.x], "series")
        words = [] if pd.api.types.is_numeric_dtype(frame[self.x]) else list(frame[self.x].dropna().unique())
        across = frame[self.x].map({word: place for place, word in enumerate(words)}) if words else frame[self.x]
        frame = frame.assign(x=across.astype(float))

        looks = choose_looks(frame, self.by)
        is_level = frame["x"].isna()
        with_line = {*frame.loc[~is_level, "series"]}
        for panel, ax in axes.items():
            here = frame[frame["panel"] == panel]
            for series, rows in here.groupby("series", sort=False):
                draw = self._draw_series if series in with_line else self._draw_level
                draw(ax, rows, looks[str(series)], str(series))
            if self.mark:
                ax.axvline(self.mark[0], label=self.mark[1], **_MARK)
            if self.level and frame.loc[is_level, "series"].isin(with_line).any():
                ax.plot([], [], color="#555555", label=self.level, **_LEVEL)
            set_axes(ax, self.across or axis_of(self.x), self.y, here["x"], words)

    def _draw_level(self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """Draw a series that is a level only, with its band, under its name or that of levels."""
        mean, low, high = rows[["mean", "low", "high"]].to_numpy(float)[0]
        line = _LONG_DASHES if look["linestyle"] == "-" else look["linestyle"]
        ax.axhline(mean, label=self.level or label, color=look["color"], linestyle=line)
        if self.y.log and low <= 0:
            low = mean  # on a logarithmic axis the band has no end
        if high > low:  # not where one seed has no interval
            ax.axhspan(low, high, color=look["color"], alpha=0.1, linewidth=0)

    def _draw_series(self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """The line with its band, and the levels of its colour."""
        for level in rows[rows["x"].isna()]["mean"]:
            ax.axhline(level, color=look["color"], **_LEVEL)
        line = rows[rows["x"].notna()].sort_values("x", kind="stable")
        if len(line) == 1:  # a line would not be seen
            point = {"color": look["color"], "fmt": look["marker"] or "o"}
            ax.errorbar(line["x"], line["mean"], _measure_bars(line), label=label, **point)
        elif len(line):
            means = line["mean"].where((line["mean"] > 0) | (not self.y.log))
            low = line["low"].where((line["low"] > 0) | (not self.y.log), means)  # on a log axis it has no end
            ax.plot(line["x"], means, label=label, markevery=max(1, len(line) // 10), **look)
            ax.fill_between(line["x"], low, line["high"], color=look["color"], alpha=0.15, linewidth=0)


@dataclass(frozen=True)
class Forest(Plot):
    """A row for each value of a column, mean and interval across; columns `by`, mean, low, high.

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
            if self.mark:
                ax.axvline(self.mark[0], label=self.mark[1], **_MARK)
            heights = [names.index(name) for name in here[self.by]]
            style: dict[str, Any] = {"fmt": "o", "color": "#0072B2", "markersize": 5, "capsize": 2}
            ax.errorbar(here["mean"], heights, xerr=_measure_bars(here), **style)
            _set_rows(ax, names)


def _require_one_row(frame: pd.DataFrame, across: list[str], name: str) -> None:
    """UserError if a line, or a row of a forest, would be drawn of several rows at one place."""
    keys = ["panel", name, *across]
    doubled = frame[frame.duplicated(keys, keep=False)]
    if doubled.empty:
        return
    same = doubled[doubled.groupby(keys, dropna=False, sort=False).ngroup() == 0]
    others = [str(column) for column in frame if column not in (*keys, *MEASURES, "series")]
    differing = list_differences(same, others)
    here = same.iloc[0]
    place = "".join(f" at {name_value(column, here[column])}" for column in across)
    reason = f"which differ in {differing}" if differing else "which differ in their numbers only"
    raise UserError(
        f"panel {here['panel']!r} has {len(same)} rows of {here[name]!r}{place}, {reason}\n"
        "put it into the panel's name (name_panels), select one, or average over it"
    )


def _set_rows(ax: Axes, names: list[Any]) -> None:
    """Names on the axis upwards, the first on top, in letters that have room."""
    ax.set_yticks(range(len(names)), [str(name) for name in names], fontsize=min(9, 200 / len(names)))
    ax.set_ylim(len(names) - 0.5, -0.5)


def _measure_bars(frame: pd.DataFrame) -> np.ndarray:
    """[2, rows]: how far `low` is below the mean, and `high` above it, as matplotlib's error bars take them."""
    return (frame[["low", "high"]].to_numpy() - frame[["mean"]].to_numpy()).T * [[-1], [1]]
