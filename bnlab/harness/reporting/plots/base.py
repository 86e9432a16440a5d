"""The base of all kinds of plot, axes that figures share, and what several kinds draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
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
AGAINST_EXACT = Axis("accuracy − that under exact (points)")

_MARK: dict[str, Any] = {"color": "#999999", "linewidth": 0.9, "linestyle": ":"}


class Plot(ABC):
    """Kind of plot; its colours and rows are chosen from the rows of all panels.

    Attributes:
        intervals: what shows them, for the caption.
    """

    intervals: ClassVar[str] = ""

    @abstractmethod
    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        """Draw the rows of each panel.

        Args:
            frame: of all panels, with the columns that the class names.
            axes: by panel, which is a value of the column `panel`.
        """

    def __call__(self, frame: pd.DataFrame, *, ax: Axes) -> Axes:
        """Draw rows that are all of one panel."""
        self.draw(frame.assign(panel=""), {"": ax})
        return ax


def split_panels(frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Go through the panels: the axes of each, with its rows."""
    for panel, ax in axes.items():
        is_here = frame["panel"] == panel
        yield ax, frame[is_here]


def draw_mark(ax: Axes, mark: tuple[float, str] | None) -> None:
    """Draw a dotted line at a value, under its name."""
    if mark:
        value, name = mark
        ax.axvline(value, label=name, **_MARK)


def require_one_row(frame: pd.DataFrame, across: list[str], name: str) -> None:
    """Refuse several rows of a line, or of a row of a forest, at one place."""
    keys = ["panel", name, *across]
    is_doubled = frame.duplicated(keys, keep=False)
    if not is_doubled.any():
        return

    same = find_first_group(frame[is_doubled], keys)
    here = same.iloc[0]
    place = "".join(f" at {name_value(column, here[column])}" for column in across)

    known = (*keys, *MEASURES, "series")
    others = [str(column) for column in frame if column not in known]
    differing = list_differences(same, others) or "their numbers only"
    raise UserError(
        f"panel {here['panel']!r} has {len(same)} rows of {here[name]!r}{place}, which differ in {differing}\n"
        "put it into the panel's name (name_panels), select one, or average over it"
    )


def measure_bars(frame: pd.DataFrame) -> np.ndarray:
    """Measure how far `low` is below the mean, and `high` above it: [2, rows], as matplotlib's error bars take them."""
    below = frame["mean"] - frame["low"]
    above = frame["high"] - frame["mean"]
    return np.stack([below, above])
