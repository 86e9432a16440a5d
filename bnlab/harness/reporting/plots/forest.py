"""Forest plots: the values of a column one below the other, each with its mean and interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness.reporting.plots.base import Plot, draw_mark, measure_bars, require_one_row, split_panels
from bnlab.harness.reporting.style import Axis, set_axes

_POINTS: dict[str, Any] = {"fmt": "o", "color": "#0072B2", "markersize": 5, "capsize": 2}


@dataclass(frozen=True)
class Forest(Plot):
    """Means with horizontal bars for their intervals, one below the other for each value of a column.

    Draws frames with the columns `by`, mean, low and high.

    Attributes:
        by: the column whose values are listed from top to bottom, in order of appearance.
        x: the horizontal axis, that of the means.
        mark: where a dotted vertical line is, and its name in the legend.
    """

    intervals: ClassVar[str] = "bars"
    by: str
    x: Axis
    mark: tuple[float, str] | None = None

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`; all panels have the same horizontal axis and names.

        Raises:
            UserError: a panel has several rows for one value of `by`.
        """
        require_one_row(frame, [], self.by)
        names = list(frame[self.by].unique())
        heights = {name: height for height, name in enumerate(names)}
        first = next(iter(axes.values()))

        for ax, panel in split_panels(frame, axes):
            if ax is not first:
                ax.sharex(first)
            set_axes(ax, self.x, Axis(""), frame["mean"])  # of all panels: a shared axis has the same ticks in each
            draw_mark(ax, self.mark)

            y = panel[self.by].map(heights)
            ax.errorbar(panel["mean"], y, xerr=measure_bars(panel), **_POINTS)
            _write_names(ax, names)


def _write_names(ax: Axes, names: list[Any]) -> None:
    """Write names beside the vertical axis, the first on top, in letters as small as it takes for all of them."""
    count = len(names)
    size = min(9, 200 / count)
    ax.set_yticks(range(count), list(map(str, names)), fontsize=size)
    ax.set_ylim(count - 0.5, -0.5)  # heights grow downwards
