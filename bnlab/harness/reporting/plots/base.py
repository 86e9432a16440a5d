"""The base class of all kinds of plot, axes that several figures have, and functions that several kinds draw with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames.means import MEASURES
from bnlab.harness.reporting.frames.selection import find_first_group, list_differences, name_value
from bnlab.harness.reporting.style import Axis

GAP = Axis("gap of the mean (σ)", log=True)
TIMES_THE_BEST = Axis("gap / that of the best fixed momentum", log=True)
ACCURACY = Axis("test accuracy (%)", (0, 102))
LOST = Axis("accuracy lost against exact statistics (points)")
LOST_OF_ANY_SIZE = replace(LOST, linear=0.3)  # up to what claims call harmless
AGAINST_EXACT = Axis("accuracy − that under exact statistics (points)", linear=0.3)

_MARK: dict[str, Any] = {"color": "#999999", "linewidth": 0.9, "linestyle": ":"}


class Plot(ABC):
    """A kind of plot, which draws all panels of a figure at once, so that a colour or place means the same in each.

    Attributes:
        intervals: the shapes by which it shows intervals, such as "bands", for the caption; empty: it shows none.
    """

    intervals: ClassVar[str] = ""

    @abstractmethod
    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel.

        Args:
            frame: the rows of all panels, with the column `panel` and those that the class names.
            axes: for each value of `panel`, the axes to draw on.
        """

    def count_lines(self, frame: pd.DataFrame) -> float:
        """Count the lines of words that a panel has one below the other; it is made as high as they take."""
        return 0.0

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw rows on one pair of axes, as a single panel."""
        self.draw(frame.assign(panel=""), {"": ax})
        return ax


def split_panels(frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Yield the axes of each panel with its rows."""
    for panel, ax in axes.items():
        is_in_panel = frame["panel"] == panel
        yield ax, frame[is_in_panel]


def draw_mark(ax: Axes, mark: tuple[float, str] | None) -> None:
    """Draw a dotted vertical line at a value, with its name for the legend; nothing if there is no mark."""
    if mark is None:
        return
    value, name = mark
    ax.axvline(value, label=name, **_MARK)


def require_one_row(frame: pd.DataFrame, across: list[str], name: str) -> None:
    """Refuse several rows that would be drawn at one place of a panel.

    Args:
        frame: the rows of all panels.
        across: the columns that place a row on the horizontal axis; empty: one row for each value of `name`.
        name: the column that tells lines, or the values of a forest, apart.

    Raises:
        UserError: it says in which columns the rows of the first such place differ.
    """
    keys = ["panel", name, *across]
    is_doubled = frame.duplicated(keys, keep=False)
    if not is_doubled.any():
        return

    same = find_first_group(frame[is_doubled], keys)
    first = same.iloc[0]
    place = "".join(f" at {name_value(column, first[column])}" for column in across)

    drawn = (*keys, *MEASURES, "series")
    others = [str(column) for column in frame if column not in drawn]
    differing = list_differences(same, others) or "their numbers only"
    raise UserError(
        f"panel {first['panel']!r} has {len(same)} rows of {first[name]!r}{place}, which differ in {differing}\n"
        "put it into the panel's name (name_panels), select one, or average over it"
    )


def measure_bars(frame: pd.DataFrame) -> np.ndarray:
    """Measure how far intervals reach below and above their means: [2, rows], for matplotlib's `errorbar`."""
    below = frame["mean"] - frame["low"]
    above = frame["high"] - frame["mean"]
    return np.stack([below, above])
