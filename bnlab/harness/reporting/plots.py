"""The four kinds of plot that figures are made of: settings first, then the rows of all panels. No global style."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from bnlab.harness.reporting.style import Axis, axis_of, choose_looks, name_series, set_axes

GAP = Axis("gap of the mean (σ)", log=True)
VARIANCE_GAP = Axis("gap of the variance (log ratio)", log=True)
TIMES_THE_BEST = Axis("gap / that of the best fixed momentum", log=True)
ACCURACY = Axis("test accuracy (%)", (0, 102))
LOST = Axis("accuracy lost against exact statistics (points)")
AGAINST_EXACT = Axis("accuracy − that under exact (points)")

_GREY = "#555555"
_DASHED: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1, "marker": ""}
_STAR: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 11, "markeredgecolor": "white"}
_MARK: dict[str, Any] = {"color": "#999999", "linewidth": 0.9, "linestyle": ":"}


class Plot(ABC):
    """A kind of plot; its colours and rows are chosen from the rows of all panels."""

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

    Rows are told apart by the column `kind`, where there is one: "dashed" are lines without an interval, "star" single
    points, "batch" small grey ones, all others lines with one. Rows without `x` are levels, dashed across the panel.

    Attributes:
        x: the column across, numbers or words; `style.AXES` says how it is drawn.
        by: the column of which each value has a colour; `estimator`: each has its own, and shades for its momenta.
        y: the axis of the means.
        level, dashed, star: names of these kinds in the legend.
        mark: a value of `x` and its name, a dotted line.
        zero: the name of a line at 0; without one there is none.
    """

    x: str
    by: str
    y: Axis
    level: str = ""
    dashed: str = ""
    star: str = ""
    mark: tuple[float, str] | None = None
    zero: str = ""

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        frame = name_series(frame if "kind" in frame else frame.assign(kind=""), self.by)
        words = [] if pd.api.types.is_numeric_dtype(frame[self.x]) else _list_values(frame[self.x].dropna())
        across = frame[self.x].map({word: place for place, word in enumerate(words)}) if words else frame[self.x]
        frame, looks = frame.assign(x=across.astype(float)), choose_looks(frame[frame["kind"] != "batch"], self.by)
        for panel, ax in axes.items():
            here = frame[frame["panel"] == panel]
            single, here = here[here["kind"] == "batch"], here[here["kind"] != "batch"]
            if len(single):
                ax.plot(single["x"], single["mean"], ".", color="#999999", markersize=3, label="single batches")
            for series, rows in here.groupby("series", sort=False):
                self._draw_series(ax, rows, looks[str(series)], str(series))
            self._draw_marks(ax)
            set_axes(ax, axis_of(self.x), self.y, here["x"], words)

    def _draw_series(self, ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
        """The line with its band, and what else is of its colour."""
        curves = rows[rows["x"].notna()].sort_values("x", kind="stable")
        for level in rows[rows["x"].isna()]["mean"]:
            ax.axhline(level, color=look["color"], **_DASHED)
        for kind, style in (("dashed", _DASHED), ("star", _STAR)):
            same = curves[curves["kind"] == kind]
            ax.plot(same["x"], same["mean"], **{**look, **style})
        line = curves[~curves["kind"].isin(["dashed", "star"])]
        if len(line) == 1:  # a line would not be seen
            point = {"color": look["color"], "fmt": look["marker"] or "o"}
            ax.errorbar(line["x"], line["mean"], _measure_bars(line), label=label, **point)
        elif len(line):
            means = line["mean"].where((line["mean"] > 0) | (not self.y.log))
            low = line["low"].where((line["low"] > 0) | (not self.y.log), means)  # on a log axis it has no end
            ax.plot(line["x"], means, label=label, markevery=max(1, len(line) // 10), **look)
            ax.fill_between(line["x"], low, line["high"], color=look["color"], alpha=0.15, linewidth=0)

    def _draw_marks(self, ax: Axes) -> None:
        """Lines that are of no series, and what the legend says of dashes and stars."""
        if self.zero:
            ax.axhline(0, color="black", linewidth=1.1, label=self.zero)
        if self.mark:
            ax.axvline(self.mark[0], label=self.mark[1], **_MARK)
        for label, style in ((self.level, _DASHED), (self.dashed, _DASHED), (self.star, _STAR)):
            if label:
                ax.plot([], [], color=_GREY, label=label, **style)


@dataclass(frozen=True)
class Points(Plot):
    """A point for each row, and on request a line on which both values are equal; columns `x`, `y`, `by`.

    Attributes:
        x, y: the columns across and upwards, and their axes.
        by: the column of which each value has a colour, as in `Curves`.
        equal: where the line begins and ends.
    """

    x: tuple[str, Axis]
    y: tuple[str, Axis]
    by: str
    equal: tuple[float, float] | None = None

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        frame = name_series(frame, self.by)
        looks = choose_looks(frame, self.by)
        for panel, ax in axes.items():
            here = frame[frame["panel"] == panel]
            for series, rows in here.groupby("series", sort=False):
                look = looks[str(series)]
                style: dict[str, Any] = {"linestyle": "none", "marker": look["marker"] or "o", "alpha": 0.7}
                ax.plot(rows[self.x[0]], rows[self.y[0]], color=look["color"], label=series, **style)
            if self.equal:
                ax.plot(self.equal, self.equal, color="black", linewidth=1)
            set_axes(ax, self.x[1], self.y[1], here[self.x[0]])


@dataclass(frozen=True)
class HeatMap(Plot):
    """A coloured field for each pair of two columns, on one scale in all panels; columns `x`, `y`, mean.

    Fields without a row stay grey.

    Attributes:
        x: the column across, numbers in order.
        y: the column downwards, its values in order of appearance, such as layers.
        colour: label, limits and scale of the colours; without limits those of the data, around 0 if some are negative.
    """

    x: str
    y: str
    colour: Axis

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`, and a bar for the colours beside them."""
        names, norm = _list_values(frame[self.y]), self._choose_norm(frame["mean"])
        meshes = []
        for panel, ax in axes.items():
            here = frame[frame["panel"] == panel]
            columns = _list_values(here[self.x])
            field = here.pivot(index=self.y, columns=self.x, values="mean").reindex(index=names, columns=columns)
            ax.set_facecolor("#dddddd")
            ax.grid(False)
            colours = "RdBu_r" if norm.vmin is not None and norm.vmin < 0 else "viridis"
            meshes.append(ax.pcolormesh(range(len(columns)), range(len(names)), field, norm=norm, cmap=colours))
            ax.set_xticks(range(len(columns)), _write_values(columns), rotation=90)
            ax.set(xlabel=axis_of(self.x).label, ylabel=axis_of(self.y).label)
            _set_rows(ax, names)
        every = list(axes.values())
        every[0].figure.colorbar(meshes[0], ax=every, label=self.colour.label, pad=0.01)

    def _choose_norm(self, values: pd.Series) -> Normalize:
        """From the lowest to the highest value, or to the limits, which those beyond share."""
        seen = values[values > 0] if self.colour.log else values
        low, high = self.colour.limits or (seen.min(), seen.max())
        if low < 0 and not self.colour.limits:
            low, high = -max(-low, high), max(-low, high)
        return (LogNorm if self.colour.log else Normalize)(low, high, clip=True)


@dataclass(frozen=True)
class Forest(Plot):
    """A row for each value of a column, mean and interval across; columns `by`, mean, low, high.

    Attributes:
        by: the column of which each value has a row, in order of appearance.
        x: the axis of the means.
        mark: where a dotted line is, and its name.
    """

    by: str
    x: Axis
    mark: tuple[float, str] | None = None

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`; all have one axis across."""
        names = _list_values(frame[self.by], ordered=False)
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


def _set_rows(ax: Axes, names: list[Any]) -> None:
    """Names on the axis upwards, the first on top, in letters that have room."""
    ax.set_yticks(range(len(names)), [str(name) for name in names], fontsize=min(9, 200 / len(names)))
    ax.set_ylim(len(names) - 0.5, -0.5)


def _measure_bars(frame: pd.DataFrame) -> np.ndarray:
    """[2, rows]: how far `low` is below the mean, and `high` above it, as matplotlib's error bars take them."""
    return (frame[["low", "high"]].to_numpy() - frame[["mean"]].to_numpy()).T * [[-1], [1]]


def _list_values(column: pd.Series, ordered: bool = True) -> list[Any]:
    """The values of a column: numbers in order, words in that of their appearance."""
    values = column.drop_duplicates()
    return list(values.sort_values() if ordered and pd.api.types.is_numeric_dtype(values) else values)


def _write_values(values: Iterable[Any]) -> list[str]:
    """Numbers in three digits; words as they are."""
    return [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
