"""Stacked bars: what a whole is made of, a bar for each value of a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness.reporting.plots.base import Plot, require_one_row, split_panels
from bnlab.harness.reporting.style import Axis, choose_looks, name_series, set_axes

_WIDTH = 0.6  # of a bar; places are 1 apart


@dataclass(frozen=True)
class Stacked(Plot):
    """Parts on top of each other, in order of appearance; negative ones hang below 0.

    Draws frames with the columns `x`, `by` and mean.

    Attributes:
        x: the column across, of which each value has a bar, in order of appearance.
        by: the column that tells parts apart.
        y: the axis of the parts.
        across: how `x` is named.
    """

    x: str
    by: str
    y: Axis
    across: Axis

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`.

        Raises:
            UserError: a bar has several rows for one part.
        """
        named = name_series(frame, self.by)
        require_one_row(named, [self.x], "series")
        looks = choose_looks(named, self.by)

        words = list(frame[self.x].unique())
        place_of_word = {word: float(place) for place, word in enumerate(words)}
        places = named[self.x].map(place_of_word)
        placed = named.assign(place=places)

        for ax, here in split_panels(placed, axes):
            self._stack(ax, here, looks)
            ax.grid(axis="x", visible=False)
            set_axes(ax, self.across, self.y, here["place"], words)
            ax.set_xlim(-0.6, len(words) - 0.4)

    def _stack(self, ax: Axes, here: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
        """Put the parts of each bar on top of each other, or below 0."""
        tops = dict.fromkeys(here["place"], 0.0)
        bottoms = dict.fromkeys(here["place"], 0.0)
        for series, rows in here.groupby("series", sort=False):
            label = str(series)
            colour = looks[label]["color"]
            places = rows["place"]
            heights = rows["mean"]

            starts = []
            for place, height in zip(places, heights, strict=True):
                ends = tops if height >= 0 else bottoms
                starts.append(ends[place])
                ends[place] += height
            ax.bar(places, heights, _WIDTH, starts, label=label, color=colour)
