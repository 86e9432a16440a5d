"""Forests: a row for each value of a column, one below the other."""

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
        require_one_row(frame, [], self.by)
        names = list(frame[self.by].unique())
        heights = {name: height for height, name in enumerate(names)}
        first = next(iter(axes.values()))

        for ax, here in split_panels(frame, axes):
            if ax is not first:
                ax.sharex(first)
            means = here["mean"]
            set_axes(ax, self.x, Axis(""), means)
            draw_mark(ax, self.mark)

            places = here[self.by].map(heights)
            ax.errorbar(means, places, xerr=measure_bars(here), **_POINTS)
            _set_rows(ax, names)


def _set_rows(ax: Axes, names: list[Any]) -> None:
    """Write names on the axis upwards, the first on top, in letters that have room."""
    rows = len(names)
    places = range(rows)
    labels = list(map(str, names))
    size = min(9, 200 / rows)
    ax.set_yticks(places, labels, fontsize=size)
    ax.set_ylim(rows - 0.5, -0.5)
