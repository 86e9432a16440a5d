"""The kinds of panel that figures are made of: settings first, then `(frame, *, ax) -> Axes`. No global style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bnlab.harness.reporting.style import estimator_label, estimator_style, line, log_axis, series

_GREY = "#555555"
_DASHED: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_STAR: dict[str, Any] = {"marker": "*", "linestyle": "none"}


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Means with their intervals against a positive setting, a line for each value of another.

    Rows are told apart by the column `kind`, where there is one: "dashed" are lines without an interval, "star" single
    points, all others lines with one. Rows without `x` are levels, dashed across the panel.

    Attributes:
        x, xlabel: the column across, on a logarithmic axis, and its label.
        by: the column of which each value has a colour.
        ylabel, ylim, log_y: the other axis.
        level, dashed, star: names of these kinds in the legend.
        mark: a value of `x` and its name, a dotted line.
    """

    x: str
    xlabel: str
    by: str
    ylabel: str
    ylim: tuple[float, float] | None = None
    log_y: bool = False
    level: str = ""
    dashed: str = ""
    star: str = ""
    mark: tuple[float, str] | None = None

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns `x`, `by`, mean, low, high."""
        frame = frame if "kind" in frame else frame.assign(kind="")
        curves, levels = frame[frame[self.x].notna()], frame[frame[self.x].isna()]
        for value, colour in series(sorted(frame[self.by].unique())).items():
            here = curves[curves[self.by] == value]
            name = f"{self.by.replace('_', ' ')} {value}"
            line(ax, here[~here["kind"].isin(["dashed", "star"])], self.x, colour, name)
            dashed = here[here["kind"] == "dashed"].sort_values(self.x)
            ax.plot(dashed[self.x], dashed["mean"], color=colour, **_DASHED)
            stars = here[here["kind"] == "star"]
            ax.plot(stars[self.x], stars["mean"], color=colour, markersize=11, markeredgecolor="white", **_STAR)
            for level in levels[levels[self.by] == value]["mean"]:
                ax.axhline(level, color=colour, **_DASHED)
        log_axis(ax, curves[self.x], self.xlabel)
        self._label(ax)
        return ax

    def _label(self, ax: Axes) -> None:
        if self.mark:
            ax.axvline(self.mark[0], color="#999999", linewidth=0.8, linestyle=":", label=self.mark[1])
        for label in filter(None, (self.level, self.dashed)):
            ax.plot([], [], color=_GREY, label=label, **_DASHED)
        if self.star:
            ax.plot([], [], color=_GREY, markersize=9, label=self.star, **_STAR)
        ax.set(ylabel=self.ylabel, yscale="log" if self.log_y else "linear", **_limits(self.ylim))


@dataclass(frozen=True, kw_only=True)
class EstimatorCurves:
    """Means with their intervals against epochs, a line for each estimator and momentum.

    Attributes:
        ylabel, ylim, log_y: the axis upwards.
        zero: the name of a line at 0; without one there is none.
    """

    ylabel: str
    ylim: tuple[float, float] | None = None
    log_y: bool = False
    zero: str = ""

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns estimator, momentum, epoch, mean, low, high."""
        for (name, momentum), rows in frame.groupby(["estimator", "momentum"], dropna=False, sort=False):
            label = estimator_label(name, momentum)
            line(ax, rows, "epoch", label=label, **estimator_style(name, momentum))
        log_axis(ax, frame["epoch"], "epoch")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        if self.zero:
            ax.axhline(0, color="black", linewidth=1.1, label=self.zero)
        ax.set(ylabel=self.ylabel, yscale="log" if self.log_y else "linear", **_limits(self.ylim))
        return ax


@dataclass(frozen=True, kw_only=True)
class Points:
    """A point for each row, on logarithmic axes, around the line on which both values are equal.

    Attributes:
        x, xlabel, y, ylabel: the columns and their labels.
        by: the column of which each value has a colour.
        factor: the grey band is so many times more and less.
        ends: where the line begins and ends.
    """

    x: str
    xlabel: str
    y: str
    ylabel: str
    by: str
    factor: float
    ends: tuple[float, float]

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw the frame's rows: columns `x`, `y` and `by`."""
        for value, colour in series(sorted(frame[self.by].unique())).items():
            here, name = frame[frame[self.by] == value], f"{self.by.replace('_', ' ')} {value}"
            ax.plot(here[self.x], here[self.y], "o", color=colour, alpha=0.6, markersize=4.5, label=name)
        ends = np.array(self.ends)
        ax.plot(ends, ends, color="black", linewidth=1)
        band: dict[str, Any] = {"color": "black", "alpha": 0.12, "linewidth": 0, "label": f"within ×{self.factor:g}"}
        ax.fill_between(ends, ends / self.factor, ends * self.factor, **band)
        ax.set(xscale="log", yscale="log", xlabel=self.xlabel, ylabel=self.ylabel)
        return ax


def _limits(limits: Sequence[float] | None) -> dict[str, Any]:
    return {} if limits is None else {"ylim": limits}
