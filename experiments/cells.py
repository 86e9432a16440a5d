"""A map: a cell with a number for each pair of settings, and below it in small what one needs to judge the number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from bnlab.harness.reporting.means import require_one_row
from bnlab.harness.reporting.plots import Plot, split_panels
from bnlab.harness.reporting.verdicts import above, compute_p_values, holm

_SMALL, _LARGE = 0.3, 30.0  # points: where colours begin to show, and where they are darkest
_DARKEST = 0.7  # of the colours; black numbers are read on it
_GREY = "#454545"
# In lines of text, as `count_lines` has to report it: a cell has a large number above small words.
_LINES_OF_A_CELL = 2.7
_FRAMES: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.03, {"edgecolor": "black", "linewidth": 1.5}),
    (0.1, {"edgecolor": "black", "linewidth": 1.2, "linestyle": (0, (2, 1.5))}),  # within the other, where both are
)
_LEVEL = 0.05  # of both directions together, over the whole map


@dataclass(frozen=True)
class Cells(Plot):
    """Numbers in cells, the larger the darker; bold where they differ from 0 after Holm's correction over the map.

    Draws frames with the columns `x`, `by` and `small`, and those of `means.interval`. All panels have the same rows;
    each has the columns that it has cells of.

    Attributes:
        x: the column across; numbers, or words in the order of their rows.
        by: the column whose values are rows from top to bottom; numbers, or words in the order of their rows.
        small: the column of words that stand below each number.
        across: what the columns are, for each panel.
        upward: what the rows are.
        shown: what numbers and colours are, in the legend.
        small_shown: what the small words are, in the legend.
        framed: at most two columns whose true cells have a frame, and what it means, in the legend.
    """

    x: str
    by: str
    small: str
    across: Mapping[str, str]
    upward: str
    shown: str
    small_shown: str
    framed: Mapping[str, str] = field(default_factory=dict)

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel, see `Plot.draw`."""
        require_one_row(frame, ["panel", self.by, self.x])
        tested = frame.assign(is_certain=find_certain(frame))
        # All panels have the rows of the whole map, so that they can be compared line by line.
        rows = _order(tested[self.by])
        for panel, (ax, here) in zip(axes, split_panels(tested, axes), strict=True):
            columns = _order(here[self.x])
            # Cells have as many colours as numbers. One from the middle of the scale stands for all in the
            # legend.
            _add_to_legend(ax, self.shown, facecolor=colormaps["OrRd"](0.5 * _DARKEST))
            _add_to_legend(ax, self.small_shown, fill=False, linewidth=0)
            _add_to_legend(ax, "bold: differs from 0 after correction", fill=False, linewidth=0)
            for cell in here.to_dict("records"):
                self._draw_cell(ax, columns.index(cell[self.x]), rows.index(cell[self.by]), cell)

            ax.set_xticks(range(len(columns)), [_write(value) for value in columns])
            ax.set_yticks(range(len(rows)), [_write(value) for value in rows])
            ax.set(xlabel=self.across[panel], ylabel=self.upward)
            ax.set_xlim(-0.5, len(columns) - 0.5)
            # The axis runs downwards, so that the first row is on top as in a table.
            ax.set_ylim(len(rows) - 0.5, -0.5)
            # Cells fill the panel: tick marks, grid and axis lines would only cross them.
            ax.tick_params(length=0)
            ax.grid(visible=False)
            sides = ax.spines[["left", "bottom"]]
            sides.set_visible(False)

    def _draw_cell(self, ax: Axes, column: int, row: int, values: Mapping[Any, Any]) -> None:
        """Draw one cell: its number, and in small the words below it."""
        mean = values["mean"]
        # Colours show losses only: a gain is as pale as no loss.
        lost = max(mean, 0.0)

        # Losses range from a third of a point to thirty, so that colours go by their logarithm. `log1p` gives
        # 0, the palest colour, for no loss.
        share = np.log1p(lost / _SMALL) / np.log1p(_LARGE / _SMALL)
        colour = colormaps["OrRd"](_DARKEST * min(share, 1.0))
        ax.add_patch(_make_patch(column, row, facecolor=colour, linewidth=0))

        # A loss of −0.04 must not be shown as −0.0. The hyphen becomes a minus sign.
        number = f"{mean:.1f}".replace("-0.0", "0.0").replace("-", "−")
        weight = "bold" if values["is_certain"] else "normal"
        ax.text(column, row - 0.1, number, ha="center", va="center", fontsize=11.5, weight=weight)
        ax.text(column, row + 0.27, values[self.small], ha="center", va="center", fontsize=6.5, color=_GREY)

        # There may be fewer framed columns than looks of frames.
        for (framed, words), (inset, look) in zip(self.framed.items(), _FRAMES, strict=False):
            if values[framed]:
                ax.add_patch(_make_patch(column, row, inset, fill=False, label=words, **look))

    def count_lines(self, frame: pd.DataFrame) -> float:
        """Count the lines of words that rows are as high as."""
        return _LINES_OF_A_CELL * frame[self.by].nunique()


def find_certain(frame: pd.DataFrame) -> list[bool]:
    """Find the rows whose mean over seeds is not 0: two-sided t tests at 5%, by Holm's correction over all rows.

    One seed has no test, and is not certain.

    Args:
        frame: rows of `means.interval`.
    """
    # Rows without a test stay NaN, which `holm` leaves out of the correction.
    p = np.full(len(frame), np.nan)
    for row_number, row in enumerate(frame.to_dict("records")):
        if row["n"] > 1:
            # A two-sided p-value is twice the smaller one of two one-sided tests.
            p[row_number] = min(1.0, 2 * min(compute_p_values(row, above(0.0))))
    return [bool(adjusted <= _LEVEL) for adjusted in holm(p)]


def _make_patch(column: int, row: int, inset: float = 0.03, **look: Any) -> Rectangle:
    corner = (column - 0.5 + inset, row - 0.5 + inset)
    return Rectangle(corner, 1 - 2 * inset, 1 - 2 * inset, **look)


def _add_to_legend(ax: Axes, words: str, **look: Any) -> None:
    """Add words to the legend by a patch that has no size: cells differ in their colours."""
    ax.add_patch(Rectangle((0, 0), 0, 0, label=words, **look))


def _order(values: pd.Series) -> list[Any]:
    """List the different values: numbers by size, words in the order of their rows."""
    different = list(values.unique())
    return sorted(different) if pd.api.types.is_numeric_dtype(values) else different


def _write(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,}"
