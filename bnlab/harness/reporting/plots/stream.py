"""Streams: values one after the other, what they scatter about, and an average that follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness.reporting.plots.base import Plot, require_one_row, split_panels
from bnlab.harness.reporting.style import SERIES, Axis, set_axes

_ORANGE, _BLUE = SERIES[0], SERIES[1]


@dataclass(frozen=True)
class Zone:
    """A stretch of a stream, shaded and named.

    Attributes:
        start, end: on the horizontal axis.
        words: its name, and below it what happens there.
    """

    start: float
    end: float
    words: str


@dataclass(frozen=True)
class Stream(Plot):
    """Values as dots, the truth as a broken line, an average as a solid one, and the distance between both shaded.

    Draws frames with the columns `x`, `by` and mean.

    Attributes:
        x: the column across, numbers.
        by: the column with the names of the three series.
        values, truth, average: the names of the series.
        axes: the horizontal axis, and that of the means.
        zones: what the stretches of the stream show.
    """

    x: str
    by: str
    values: str
    truth: str
    average: str
    axes: tuple[Axis, Axis]
    zones: Sequence[Zone] = ()

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`.

        Raises:
            UserError: a series has several rows at one `x` in a panel.
        """
        require_one_row(frame, [self.x], self.by)
        across, upward = self.axes
        for ax, here in split_panels(frame, axes):
            self._draw_series(ax, here)
            set_axes(ax, across, upward, here[self.x])
            self._name_zones(ax)

    def _draw_series(self, ax: Axes, here: pd.DataFrame) -> None:
        """Draw the three series of a panel, and shade what is between the truth and the average."""
        series = here.pivot(index=self.x, columns=self.by, values="mean")
        series = series.sort_index()
        x = series.index.to_numpy()
        values = series[self.values]
        truth = series[self.truth]
        average = series[self.average]

        ax.fill_between(x, truth, average, color=_BLUE, alpha=0.2, linewidth=0)
        ax.plot(x, values, ".", color=_ORANGE, alpha=0.7, label=self.values)
        ax.plot(x, truth, "--", color="black", label=self.truth)
        ax.plot(x, average, color=_BLUE, linewidth=2.2, label=self.average)

    def _name_zones(self, ax: Axes) -> None:
        """Name the zones on top of the panel, and separate them."""
        low, high = ax.get_ylim()
        room = 0.2 * (high - low)  # for words of two lines
        ax.set_ylim(low, high + room)

        in_panel = ax.get_xaxis_transform()  # upwards in shares of the panel
        for zone in self.zones:
            middle = (zone.start + zone.end) / 2
            ax.text(middle, 0.985, zone.words, transform=in_panel, ha="center", va="top")
        for zone in self.zones[1:]:
            ax.axvline(zone.start, color="#999999", linewidth=0.9, linestyle=":")
