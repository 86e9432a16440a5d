"""Figures: their panels in rows, one legend, the caption with the sentence on means and n; and their files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure as Drawn
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.experiment import Figure, Tables
from bnlab.harness.reporting.style import write_out_decades
from bnlab.harness.schedule import SCHEDULES

_IN_A_ROW = 4  # the most panels
_TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold", "va": "top"}
_CAPTION: dict[str, Any] = {"fontsize": 8.5, "color": "#333333", "va": "bottom", "linespacing": 1.25}


def draw(name: str, figure: Figure, tables: Tables) -> Drawn:
    """Draw all panels, in order of appearance, with one legend below and the caption under it.

    Args:
        name: of the figure, for messages.
        figure: what to draw.
        tables: those of its experiment.

    Raises:
        NoRows: there is nothing to draw.
    """
    frame = figure.score(tables)
    if frame["mean"].isna().all():  # also of no rows
        raise NoRows(f"figure {name}: the tables have no value for it")

    panels = list(frame["panel"].unique())
    count = len(panels)
    rows = math.ceil(count / _IN_A_ROW)
    columns = math.ceil(count / rows)
    drawn, grid = plt.subplots(rows, columns, sharey=True, squeeze=False)
    axes = dict(zip(panels, grid.flat, strict=False))
    figure.plot.draw(frame, axes)

    for panel, ax in axes.items():
        ax.set_title(str(panel))
        write_out_decades(ax)
    for ax in grid[:, 1:].flat:
        ax.set_ylabel("")
    for ax in grid.flat[count:]:
        ax.set_axis_off()

    caption = _write_caption(figure, frame, tables)
    width = 3.5 * columns + 0.6
    _add_text(drawn, figure.title, caption, rows, width)
    return drawn


def _write_caption(figure: Figure, frame: pd.DataFrame, tables: Tables) -> str:
    """Say how to read the figure, with a sentence on what is drawn of how many seeds."""
    runs = tables["runs"]
    schedule = _say_schedule(runs)
    sizes = sorted(runs["batch_size"].unique())
    batch_size = ", ".join(map(str, sizes))
    caption = figure.caption.format(schedule=schedule, batch_size=batch_size)

    means = "Geometric means" if frame["log"].all() else "Means"
    intervals = ""
    has_intervals = frame["low"].notna().any()
    if figure.plot.intervals and has_intervals:
        intervals = f", {figure.plot.intervals}: 95% intervals"
    seeds = _say_seeds(frame["n"])
    sentences = f"{caption} {means} over seeds{intervals}; {seeds}."
    return sentences.replace("  ", " ")


def _say_schedule(runs: pd.DataFrame) -> str:
    """Write a sentence on the learning rate, if all networks have the same schedule."""
    schedules = {*runs.get("optimizer.schedule", ())}
    if len(schedules) != 1:
        return ""
    return SCHEDULES.get(schedules.pop(), "")


def _say_seeds(counts: pd.Series) -> str:
    """Say how many seeds means are of, as `n = 5–15 seeds`, with spaces at which no line is broken."""
    low = counts.min()
    high = counts.max()
    span = str(low) if low == high else f"{low}–{high}"
    noun = "seeds" if high > 1 else "seed"
    return f"n\u00a0=\u00a0{span} {noun}"


def _add_text(drawn: Drawn, title: str, caption: str, rows: int, width: float) -> None:
    """Put the title above, legend and caption below, and give the figure the size that leaves each panel 3 inches."""
    titles = textwrap.wrap(title, int(width * 9.5))
    lines = textwrap.wrap(caption, int(width * 14.5))
    handles = _find_handles(drawn)
    legend_rows = _count_legend_rows(handles, width)

    above = 0.2 + 0.22 * len(titles)
    legend = 0.22 * legend_rows
    below = 0.12 + 0.17 * len(lines)
    text_height = above + legend + below
    height = 3.5 * rows + text_height
    drawn.set_size_inches(width, height)

    # From here on lengths are shares of the figure's, not inches.
    bottom = (below + legend + 0.06) / height
    panel_height = 1 - (text_height + 0.06) / height
    panels = (0.01, bottom, 0.98, panel_height)
    layout = ConstrainedLayoutEngine(rect=panels, wspace=0.03, hspace=0.03)
    drawn.set_layout_engine(layout)

    top = 1 - 0.12 / height
    drawn.text(0.02, top, "\n".join(titles), **_TITLE)
    drawn.text(0.02, 0.08 / height, "\n".join(lines), **_CAPTION)
    if handles:
        columns = math.ceil(len(handles) / legend_rows)
        place = (0.5, below / height)
        drawn.legend(handles.values(), handles.keys(), ncols=columns, loc="lower center", bbox_to_anchor=place)


def _find_handles(drawn: Drawn) -> dict[str, Any]:
    """Find what the legend shows, by its words: one handle of each series in all panels."""
    handles = {}
    for ax in drawn.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    return handles


def _count_legend_rows(labels: Collection[str], width: float) -> int:
    """Count the rows that a legend takes, in a figure of this width in inches."""
    longest = max(map(len, labels), default=0)
    entry = max(2.2, 0.6 + 0.07 * longest)
    in_a_row = max(1, int(width // entry))
    return math.ceil(len(labels) / in_a_row)


def save(drawn: Drawn, folder: Path, name: str, pdf: bool = True) -> Path:
    """Write the PNG, of 256 colours, and a PDF without a date, so that the same table gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = io.BytesIO()
    drawn.savefig(pixels)
    image = Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    path = folder / f"{name}.png"
    image.save(path, optimize=True)

    if pdf:
        drawn.set_layout_engine("none")  # the layout of the first file holds for the second
        drawn.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(drawn)
    return path
