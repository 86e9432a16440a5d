"""Numbers that a paper prints, as a part of a figure: a panel of their own in grey, or stretches of our panels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from bnlab.harness.reporting.axes import Axis
from bnlab.harness.reporting.plots import Curves, Forest, Plot
from bnlab.harness.reporting.question import Figure, Printed

THEIRS = "theirs"
"""In legends and names of files: numbers that a paper prints."""


def describe_printed(printed: Sequence[Printed]) -> Iterator[str]:
    """Say what is grey in a figure, for its caption."""
    if printed:
        yield "Grey: their numbers, on their own task and networks, from the sources in the table below."
    if any(number.sd > 0 for number in printed):
        yield "Grey intervals are two standard deviations over its runs to each side."


def name_span(number: Printed) -> str:
    """Name a stretch of the horizontal axis, for the legend."""
    ends = " to ".join(f"{end:,g}" for end in dict.fromkeys(number.span))
    return f"{THEIRS}: {ends} {number.unit}"


def make_printed_figure(title: str, caption: str, plot: Plot, printed: Sequence[Printed], reads: str) -> Figure:
    """Make a figure of printed numbers alone, none of which is a stretch of an axis; it is drawn beside `reads`."""
    panel_plot, frame = make_panel(plot, printed)
    caption = " ".join([caption, *describe_printed(printed)]).strip()
    return Figure(title, caption, lambda tables: frame, panel_plot, reads=reads)


def make_panel(plot: Plot, printed: Sequence[Printed]) -> tuple[Plot, pd.DataFrame]:
    """Make the panel of printed numbers, which have another task than ours, and so axes of their own.

    It stands below ours, and is what draws it, and its rows.

    Args:
        plot: what draws our panels: `Curves`, or else a list downwards.
        printed: numbers, none of which is a stretch of an axis.
    """
    frame = _tabulate(printed)
    axis = Axis(", ".join(dict.fromkeys(number.unit for number in printed)))
    tasks = frame["panel"].unique()
    title = THEIRS
    if len(tasks) == 1:
        title = f"{THEIRS}: {tasks[0]}"

    if isinstance(plot, Curves):
        # All lines share one panel, so that each has to name its task if there are several.
        names = frame["series"] if len(tasks) == 1 else frame["panel"] + ", " + frame["series"]
        lines = frame.assign(line=f"{THEIRS}: " + names, panel=title).rename(columns={"x": plot.x})
        return replace(plot, by="line", y=axis), lines

    # What there is more of is listed downwards, and the other told apart by shapes.
    by, other = ("panel", "series") if len(tasks) > frame["series"].nunique() else ("series", "panel")
    rows = frame.assign(name=frame[by], line=f"{THEIRS}: " + frame[other], panel=title)
    series = "line" if frame[other].nunique() > 1 else ""
    return Forest("name", axis, series=series), rows


def _tabulate(printed: Sequence[Printed]) -> pd.DataFrame:
    """Put printed numbers into rows as those of `frames.interval`; their intervals are two standard deviations."""
    columns = ("panel", "series", "x", "value", "sd")
    frame = pd.DataFrame([{column: getattr(number, column) for column in columns} for number in printed])
    half = 2 * frame.pop("sd")
    mean = frame.pop("value")
    # n is 0 because no seeds of ours are behind these numbers, and `printed` draws them in grey.
    return frame.assign(mean=mean, low=mean - half, high=mean + half, n=0, log=False, printed=True)
