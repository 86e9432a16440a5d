"""The kinds of panel that figures are made of: settings first, then `(frame, *, ax) -> Axes`. No global style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from bnlab.harness.reporting.frames import name_value
from bnlab.harness.reporting.style import (
    Axis,
    axis_of,
    choose_colours,
    choose_rows,
    draw_line,
    estimator_label,
    estimator_style,
    find_alone,
    interval_lengths,
    require_one_row,
    set_axes,
)

GAP = Axis("gap of the mean (σ)", log=True)
VARIANCE_GAP = Axis("gap of the variance (log ratio)", log=True)
TIMES_THE_BEST = Axis("gap / that of the best fixed momentum", log=True)
ACCURACY = Axis("test accuracy (%)", (0, 102))
LOST = Axis("accuracy lost against exact statistics (points)")
AGAINST_EXACT = Axis("accuracy − that under exact (points)")

_GREY = "#555555"
_DASHED: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_STAR: dict[str, Any] = {"marker": "*", "linestyle": "none"}


class _Across:
    """A kind of panel with means upwards, and a column across."""

    x: str
    y: Axis

    @property
    def axes(self) -> dict[str, Axis]:
        """The columns that are drawn along an axis."""
        return {self.x: axis_of(self.x), "mean": self.y}

    def begin(self, frame: pd.DataFrame, axes: Sequence[Axes]) -> None:
        """Words have one order across in all panels, also where the first has not all of them."""
        if not pd.api.types.is_numeric_dtype(frame[self.x]):
            for ax in axes:
                ax.xaxis.update_units(list(dict.fromkeys(frame[self.x].dropna())))


@dataclass(frozen=True)
class Curves(_Across):
    """Means with their intervals against a setting, a line for each value of another.

    Rows are told apart by the column `kind`, where there is one: "dashed" are lines without an interval, "star" single
    points, all others lines with one. Rows without `x` are levels, dashed across the panel.

    Attributes:
        x: the column across; `style.AXES` says how it is drawn.
        by: the column of which each value has a colour.
        y: the axis of the means.
        level, dashed, star: names of these kinds in the legend.
        mark: a value of `x` and its name, a dotted line.
    """

    reading: ClassVar[str] = "Lines: {mean} over seeds, bands: 95% intervals."
    x: str
    by: str
    y: Axis
    level: str = ""
    dashed: str = ""
    star: str = ""
    mark: tuple[float, str] | None = None
    zero: str = ""

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns `x`, `by`, mean, low, high.

        Raises:
            ValueError: a row has no `by`, or a line several rows at one `x` or several levels.
        """
        if self.by == "estimator":
            return EstimatorCurves(self.y, self.zero, self.x)(frame, ax=ax)
        frame = frame if "kind" in frame else frame.assign(kind="")
        curves, levels = frame[frame[self.x].notna()], frame[frame[self.x].isna()]
        if (doubled := levels.duplicated([self.by, "kind"])).any():
            raise ValueError(
                f"{name_value(self.by, levels[self.by][doubled].iloc[0])} has several levels; average or select them"
            )
        for value, colour in choose_colours(_list_series(frame, self.by)).items():
            here = curves[curves[self.by] == value]
            drawn = here[~here["kind"].isin(["dashed", "star"])]
            draw_line(ax, drawn, self.x, colour, name_value(self.by, value), log=self.y.log)
            dashed = here[here["kind"] == "dashed"].sort_values(self.x, kind="stable")
            require_one_row(dashed, self.x, name_value(self.by, value))
            marks: dict[str, Any] = {"marker": "_", "markersize": 14, "markevery": list(find_alone(dashed["mean"]))}
            ax.plot(dashed[self.x], dashed["mean"], color=colour, **_DASHED, **marks)
            stars = here[here["kind"] == "star"]
            ax.plot(stars[self.x], stars["mean"], color=colour, markersize=11, markeredgecolor="white", **_STAR)
            for level in levels[levels[self.by] == value]["mean"]:
                ax.axhline(level, color=colour, **_DASHED)
        set_axes(ax, axis_of(self.x), self.y, curves[self.x])
        self._label(ax)
        return ax

    def _label(self, ax: Axes) -> None:
        if self.mark:
            ax.axvline(self.mark[0], color="#999999", linewidth=0.8, linestyle=":", label=self.mark[1])
        for label in filter(None, (self.level, self.dashed)):
            ax.plot([], [], color=_GREY, label=label, **_DASHED)
        if self.star:
            ax.plot([], [], color=_GREY, markersize=9, label=self.star, **_STAR)


@dataclass(frozen=True)
class EstimatorCurves(_Across):
    """Means with their intervals, a line for each estimator and momentum.

    Rows that have "batch" in the column `kind`, where there is one, are grey points: single batches' values, which the
    estimators average.

    Attributes:
        y: the axis of the means.
        zero: the name of a line at 0; without one there is none.
        x: the column across; `style.AXES` says how it is drawn.
    """

    reading: ClassVar[str] = Curves.reading
    y: Axis
    zero: str = ""
    x: str = "epoch"

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns estimator, momentum, `x`, mean, low, high.

        Raises:
            ValueError: a line has several rows at one `x`.
        """
        single = frame["kind"].eq("batch") if "kind" in frame else pd.Series(False, frame.index)
        if single.any():
            dots: dict[str, Any] = {"color": "#999999", "alpha": 0.5, "label": "single batches"}
            ax.plot(frame[single][self.x], frame[single]["mean"], ".", markersize=3, **dots)
        for (name, momentum), rows in frame[~single].groupby(["estimator", "momentum"], dropna=False, sort=False):
            label = estimator_label(name, momentum)
            draw_line(ax, rows, self.x, label=label, log=self.y.log, **estimator_style(name, momentum))
        if self.zero:
            ax.axhline(0, color="black", linewidth=1.1, label=self.zero)
        set_axes(ax, axis_of(self.x), self.y, frame[self.x])
        return ax


@dataclass(frozen=True)
class Points:
    """A point for each row; on request a line on which both values are equal, with a band around it.

    Attributes:
        x, y: the columns across and upwards, and their axes.
        by: the column of which each value has a colour; `estimator`: each has its own, and a marker for each momentum.
        equal: where the line begins and ends.
        factor: the grey band around it is so many times more and less; 1 is none.
    """

    reading: ClassVar[str] = ""
    x: tuple[str, Axis]
    y: tuple[str, Axis]
    by: str
    equal: tuple[float, float] | None = None
    factor: float = 1

    @property
    def axes(self) -> dict[str, Axis]:
        """The columns that are drawn along an axis."""
        return dict([self.x, self.y])

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns `x`, `y` and `by`; momentum where that is the estimator.

        Raises:
            ValueError: a row has no `by`.
        """
        for here, style in self._series(frame):
            seen = here.dropna(subset=[self.x[0], self.y[0]])  # among words, matplotlib takes no missing one
            ax.plot(seen[self.x[0]], seen[self.y[0]], linestyle="none", **style)
        if self.equal:
            ends = np.array(self.equal)
            ax.plot(ends, ends, color="black", linewidth=1)
            if self.factor > 1:
                band: dict[str, Any] = {"color": "black", "alpha": 0.12, "linewidth": 0}
                ax.fill_between(ends, ends / self.factor, ends * self.factor, **band, label=f"within ×{self.factor:g}")
        set_axes(ax, self.x[1], self.y[1], frame[self.x[0]])
        return ax

    def _series(self, frame: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
        """The rows of each colour, and how they are drawn."""
        if self.by == "estimator":
            for (name, momentum), here in frame.groupby(["estimator", "momentum"], dropna=False, sort=False):
                look, label = estimator_style(name, momentum), estimator_label(name, momentum)
                yield here, {"color": look["colour"], "marker": look["marker"] or "P", "markersize": 7, "label": label}
            return
        for value, colour in choose_colours(_list_series(frame, self.by)).items():
            style: dict[str, Any] = {"color": colour, "alpha": 0.6, "marker": "o", "markersize": 4.5}
            yield frame[frame[self.by] == value], {**style, "label": name_value(self.by, value)}


@dataclass(frozen=True)
class Histograms:
    """Outlines of distributions, one for each estimator and momentum.

    Attributes:
        x: the axis of the values that are counted.
        y: the axis of their share in a bin or of their density.
    """

    reading: ClassVar[str] = "Outlines: {mean} over seeds, bands: 95% intervals."
    x: Axis
    y: Axis

    @property
    def axes(self) -> dict[str, Axis]:
        """The columns that are drawn along an axis."""
        return {"left": self.x, "mean": self.y}

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns estimator, momentum, left, right (of a bin), mean, low, high.

        Raises:
            ValueError: bins of an outline overlap or leave gaps.
        """
        for (name, momentum), rows in frame.groupby(["estimator", "momentum"], dropna=False, sort=False):
            bins, label = rows.sort_values("left", kind="stable"), estimator_label(name, momentum)
            if not np.allclose(bins["left"].iloc[1:], bins["right"].iloc[:-1]):
                raise ValueError(f"Histograms: the bins of {label} overlap or leave gaps; select one series of bins")
            edges = [*bins["left"], bins["right"].iloc[-1]]
            style = estimator_style(name, momentum)
            outline: dict[str, Any] = {"color": style["colour"], "linestyle": style["linestyle"], "linewidth": 1.6}
            ax.stairs(bins["mean"], edges, baseline=None, label=label, **outline)
            if bins["low"].notna().any():
                band: dict[str, Any] = {"step": "post", "color": style["colour"], "alpha": 0.15, "linewidth": 0}
                low, high = (bins[bound].to_list() for bound in ("low", "high"))
                ax.fill_between(edges, [*low, low[-1]], [*high, high[-1]], **band)
        set_axes(ax, self.x, self.y, frame["left"])
        return ax


@dataclass(frozen=True)
class Stacked(_Across):
    """Areas or bars of terms upon each other, positive ones above 0 and negative ones below, and their sum as a line.

    Attributes:
        x: the column across; `style.AXES` says how it is drawn.
        y: the axis of the terms.
        total: the name of the sum.
        bars: a bar for each value of `x`, which has none between them, such as a layer; the sum as points.
    """

    reading: ClassVar[str] = "Heights: {mean} over seeds."
    x: str
    y: Axis
    total: str = "sum"
    bars: bool = False

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns `x`, term, mean.

        Raises:
            ValueError: a term is missing at some `x`, or is there twice.
        """
        terms = frame.pivot(index=self.x, columns="term", values="mean")[list(dict.fromkeys(frame["term"]))]
        terms = terms.loc[_list_values(frame[self.x])]
        if terms.isna().any(axis=None):
            raise ValueError(f"Stacked: not every term has a value at each {self.x}")
        is_bars = self.bars or len(terms) == 1  # an area would not be seen
        is_log = axis_of(self.x).log and pd.api.types.is_numeric_dtype(frame[self.x])
        width = 0.3 * terms.index if is_log else 0.8
        for heights, labelled in ((terms.clip(lower=0), True), (terms.clip(upper=0), False)):
            tops = heights.cumsum(axis=1)
            for term, colour in choose_colours(list(terms)).items():
                area: dict[str, Any] = {"color": colour, "alpha": 0.8, "linewidth": 0}
                area["label"] = str(term) if labelled else None
                if is_bars:
                    ax.bar(terms.index, heights[term], width, bottom=tops[term] - heights[term], **area)
                else:
                    ax.fill_between(terms.index, tops[term] - heights[term], tops[term], **area)
        ax.plot(terms.index, terms.sum(axis=1), "D" if is_bars else "-", color="black", linewidth=1.3, markersize=4,
                label=self.total)  # fmt: skip
        set_axes(ax, axis_of(self.x), self.y, frame[self.x])
        if self.bars:
            ax.use_sticky_edges = False  # room above the bars
            ax.set_xticks(list(terms.index))
        return ax


@dataclass(frozen=True)
class HeatMap:
    """A coloured field for each pair of two columns, on one scale in all panels; fields without a row stay grey.

    Attributes:
        x: the column across, its values side by side in order.
        y: the column downwards, its values in order of appearance, such as layers.
        colour: label, limits and scale of the colours; without limits those of the data, around 0 if some are negative.
    """

    reading: ClassVar[str] = "Colours: {mean} over seeds."
    x: str
    y: str
    colour: Axis

    @property
    def axes(self) -> dict[str, Axis]:
        """The column that has a colour."""
        return {"mean": self.colour}

    def begin(self, frame: pd.DataFrame, axes: Sequence[Axes]) -> None:
        """The rows of all panels, also where the first has not all of them."""
        choose_rows(axes[0], list(dict.fromkeys(frame[self.y])))

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns `x`, `y`, mean.

        Raises:
            ValueError: a field has several rows.
        """
        field = frame.pivot(index=self.y, columns=self.x, values="mean")[_list_values(frame[self.x])]
        rows = choose_rows(ax, list(dict.fromkeys(frame[self.y])))
        grid = np.full((max(rows.values()) + 1, field.shape[1]), np.nan)
        grid[[rows[name] for name in field.index]] = field.to_numpy()
        ax.set_facecolor("#dddddd")
        ax.grid(False)
        ax.pcolormesh(np.arange(grid.shape[1] + 1) - 0.5, np.arange(len(grid) + 1) - 0.5, np.ma.masked_invalid(grid))
        ax.set_xticks(range(field.shape[1]), _write_values(field.columns), rotation=90)
        ax.set(xlabel=axis_of(self.x).label, ylabel=axis_of(self.y).label)
        return ax

    def finish(self, axes: Sequence[Axes]) -> None:
        """One scale of colours for all panels, and its bar."""
        meshes = [mesh for ax in axes for mesh in ax.collections]
        values = np.concatenate([np.ma.compressed(np.ma.asarray(mesh.get_array())) for mesh in meshes])
        low, high = self.colour.limits or (values[values > 0].min() if self.colour.log else values.min(), values.max())
        if low < 0 and not self.colour.limits:
            low, high = -max(-low, high), max(-low, high)
        norm = (LogNorm if self.colour.log else Normalize)(low, high, clip=True)  # 0 has the lowest logarithm's colour
        for mesh in meshes:
            mesh.set(norm=norm, cmap="RdBu_r" if low < 0 else "viridis")
        axes[0].figure.colorbar(meshes[0], ax=list(axes), label=self.colour.label, pad=0.01)


@dataclass(frozen=True)
class Forest:
    """A row for each value of a column: mean and interval across.

    Attributes:
        by: the column of which each value has a row, in order of appearance.
        x: the axis of the means.
        mark: where a dotted line is, and its name.
    """

    reading: ClassVar[str] = "Points: {mean} over seeds, bars: 95% intervals."
    share_x: ClassVar[bool] = True  # of all panels, so that bars of one length mean the same
    by: str
    x: Axis
    mark: tuple[float, str] | None = None

    @property
    def axes(self) -> dict[str, Axis]:
        """The columns that are drawn along an axis."""
        return {"mean": self.x}

    def begin(self, frame: pd.DataFrame, axes: Sequence[Axes]) -> None:
        """The rows of all panels, also where the first has not all of them."""
        choose_rows(axes[0], list(dict.fromkeys(frame[self.by])))

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns `by`, mean, low, high.

        Raises:
            ValueError: a value of `by` has several rows.
        """
        if frame[self.by].duplicated().any():
            raise ValueError(
                f"Forest: {self.by} {frame[self.by][frame[self.by].duplicated()].iloc[0]} has several rows"
            )
        set_axes(ax, self.x, Axis(""), frame["mean"])
        rows = choose_rows(ax, list(frame[self.by]))
        if self.mark:
            ax.axvline(self.mark[0], color="#999999", linewidth=1, linestyle=":", label=self.mark[1])
        heights = [rows[name] for name in frame[self.by]]
        marks: dict[str, Any] = {"fmt": "o", "color": "#0072B2", "markersize": 5, "capsize": 2}
        ax.errorbar(frame["mean"], heights, xerr=interval_lengths(frame), **marks)
        return ax


def _list_series(frame: pd.DataFrame, by: str) -> list[Any]:
    """The values of a column in order; ValueError where it has none: such rows would belong to no series."""
    if frame[by].isna().any():
        raise ValueError(f"rows without {by} would not be drawn; select those that have one")
    return sorted(frame[by].unique())


def _list_values(column: pd.Series) -> list[Any]:
    """Its values in order; names of layers have been put into theirs."""
    values = column.drop_duplicates()
    return list(values if column.name == "layer" or values.map(type).nunique() > 1 else values.sort_values())


def _write_values(values: Iterable[Any]) -> list[str]:
    """Numbers in as few digits as tell them apart, but two and those before the point; words as they are."""
    known = list(values)
    texts: list[str] = []
    for digits in range(2, 18):
        texts = [_write_number(float(value), digits) if isinstance(value, Real) else str(value) for value in known]
        if len({*texts}) == len(known):
            break
    return texts


def _write_number(value: float, digits: int) -> str:
    """
    >>> _write_number(112.5, 2), _write_number(0.25, 2), _write_number(40.0, 2), _write_number(0.00012, 2)
    ('112', '0.25', '40', '0.00012')
    """
    if math.isnan(value):
        return "none"
    return f"{value:.0f}" if value.is_integer() or abs(value) >= 10**digits else f"{value:.{digits}g}"
