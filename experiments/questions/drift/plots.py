"""A stream of values with its average, and the stretches of it that show something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness.reporting.axes import Axis, set_axes
from bnlab.harness.reporting.looks import GREYS, MARK, choose_looks_of_words
from bnlab.harness.reporting.means import require_one_row
from bnlab.harness.reporting.plots import Plot, split_panels


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
class StreamPlot(Plot):
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
        """Draw the rows of each panel, see `Plot.draw`."""
        require_one_row(frame, ["panel", self.by, self.x])
        across, upward = self.axes
        looks = choose_looks_of_words([self.truth, self.average])
        blue = looks[self.average]["color"]
        for ax, here in split_panels(frame, axes):
            series = here.pivot(index=self.x, columns=self.by, values="mean").sort_index()
            x = series.index.to_numpy()
            truth = series[self.truth]
            average = series[self.average]
            ax.fill_between(x, truth, average, color=blue, alpha=0.2, linewidth=0)
            ax.plot(x, series[self.values], ".", color=GREYS[1], alpha=0.7, label=self.values)
            ax.plot(x, truth, label=self.truth, **looks[self.truth])
            ax.plot(x, average, label=self.average, **{**looks[self.average], "linewidth": 2.2})
            set_axes(ax, across, upward, here[self.x])

            low, high = ax.get_ylim()
            ax.set_ylim(low, high + 0.2 * (high - low))  # room for the zones' words of two lines
            for zone in self.zones:
                middle = (zone.start + zone.end) / 2
                in_panel = ax.get_xaxis_transform()  # upwards in shares of the panel
                ax.text(middle, 0.985, zone.words, transform=in_panel, ha="center", va="top")
            # Lines separate zones: none is drawn where the first one begins.
            for zone in self.zones[1:]:
                ax.axvline(zone.start, **MARK)
