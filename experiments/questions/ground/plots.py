"""A map: a cell with a number for each pair of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from bnlab.harness.reporting.means import require_one_row
from bnlab.harness.reporting.plots import Plot, split_panels

_SMALL, _LARGE = 0.3, 30.0  # points: where colours begin to show, and where they are darkest
_DARKEST = 0.7  # of the colours; black numbers are read on it
_GREY = "#767676"
_LINES_OF_A_CELL = 2.3
_CENTERED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 11.5}


@dataclass(frozen=True)
class Cells(Plot):
    """Numbers in cells, the larger the darker; bold where the interval leaves out 0.

    Draws frames with the columns `x`, `by`, hollow, mean, low and high. Cells that `hollow` marks as true are hatched,
    without a colour.

    Attributes:
        x: the column across, numbers.
        by: the column whose values are rows, from top to bottom.
        labels: what both are called.
        shown: what numbers and colours are, in the legend.
        hatched: what hatching means, in the legend.
    """

    x: str
    by: str
    labels: tuple[str, str]
    shown: str
    hatched: str

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        require_one_row(frame, ["panel", self.by, self.x])
        across_values = frame[self.x]
        upward_values = frame[self.by]
        columns = sorted(across_values.unique())
        names = sorted(upward_values.unique())
        across, upward = self.labels
        for ax, here in split_panels(frame, axes):
            cells = here.sort_values("hollow")
            for cell in cells.to_dict("records"):
                column = columns.index(cell[self.x])
                row = names.index(cell[self.by])
                self._draw_cell(ax, column, row, cell)

            words_across = [f"{value:,}" for value in columns]
            words_upward = [f"{value:,}" for value in names]
            ax.set_xticks(range(len(columns)), words_across)
            ax.set_yticks(range(len(names)), words_upward)
            ax.set(xlabel=across, ylabel=upward)
            right = len(columns) - 0.5
            bottom = len(names) - 0.5
            ax.set_xlim(-0.5, right)
            ax.set_ylim(bottom, -0.5)
            ax.tick_params(length=0)
            ax.grid(visible=False)
            sides = ax.spines[["left", "bottom"]]
            sides.set_visible(False)

    def _draw_cell(self, ax: Axes, column: int, row: int, values: Mapping[Any, Any]) -> None:
        """Draw one cell with its number."""
        mean = values["mean"]
        lost = max(mean, 0.0)
        share = np.log1p(lost / _SMALL) / np.log1p(_LARGE / _SMALL)
        darkness = _DARKEST * min(share, 1.0)
        corner = (column - 0.47, row - 0.46)
        cell = Rectangle(corner, 0.94, 0.92, linewidth=0)

        number = f"{mean:.1f}"
        number = number.replace("-0.0", "0.0")
        number = number.replace("-", "−")
        text = ax.text(column, row, number, **_CENTERED)
        is_certain = values["low"] > 0 or values["high"] < 0
        if is_certain:
            text.set_fontweight("bold")

        if values["hollow"]:
            cell.set(facecolor="white", edgecolor="#c4c4c4", hatch="////", label=self.hatched)
            outline = withStroke(linewidth=3.5, foreground="white")
            text.set_path_effects([outline])
            text.set_color(_GREY)
        else:
            colour = colormaps["OrRd"](darkness)
            cell.set(facecolor=colour, edgecolor="white", label=self.shown)
            text.set_color("black")
        ax.add_patch(cell)

    def count_lines(self, frame: pd.DataFrame) -> float:
        """Count the lines of words that rows are as high as."""
        return _LINES_OF_A_CELL * frame[self.by].nunique()
