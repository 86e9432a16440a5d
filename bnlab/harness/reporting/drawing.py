"""Figures: their panels in rows, one legend, the caption with the sentence on means and n; and their files."""

from __future__ import annotations

import io
import math
import textwrap
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


def draw(name: str, figure: Figure, tables: Tables) -> Drawn:
    """All panels, in order of appearance, with one legend below and the caption under it.

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
    panels = list(dict.fromkeys(frame["panel"]))
    rows = math.ceil(len(panels) / _IN_A_ROW)
    columns = math.ceil(len(panels) / rows)
    drawn, grid = plt.subplots(rows, columns, sharey=True, squeeze=False)
    axes = dict(zip(panels, grid.flat, strict=False))
    figure.plot.draw(frame, axes)
    for panel, ax in axes.items():
        ax.set_title(str(panel))
        write_out_decades(ax)
    for ax in grid[:, 1:].flat:
        ax.set_ylabel("")
    for ax in grid.flat[len(panels) :]:
        ax.set_axis_off()
    _add_text(drawn, figure.title, _write_caption(figure, frame, tables), rows, 3.5 * columns + 0.6)
    return drawn


def _write_caption(figure: Figure, frame: pd.DataFrame, tables: Tables) -> str:
    """How to read the figure, with a sentence on what is drawn of how many seeds."""
    runs = tables["runs"]
    schedules = {*runs.get("optimizer.schedule", ())}
    caption = figure.caption.format(
        schedule=SCHEDULES.get(schedules.pop(), "") if len(schedules) == 1 else "",
        batch_size=", ".join(map(str, sorted(runs["batch_size"].unique()))),
    )
    low, high = frame["n"].min(), frame["n"].max()
    means = "Geometric means" if frame["log"].all() else "Means"
    drawn = figure.plot.intervals if frame["low"].notna().any() else ""
    intervals = f", {drawn}: 95% intervals" if drawn else ""
    seeds = f"n\u00a0=\u00a0{low if low == high else f'{low}–{high}'} {'seeds' if high > 1 else 'seed'}"
    sentence = f"{means} over seeds{intervals}; {seeds}."
    return f"{caption} {sentence}".replace("  ", " ")


def _add_text(drawn: Drawn, title: str, caption: str, rows: int, width: float) -> None:
    """Put the title above, legend and caption below, and give the figure the size that leaves each panel 3 inches."""
    titles = textwrap.wrap(title, int(width * 9.5))
    lines = textwrap.wrap(caption, int(width * 14.5))
    found = [pair for ax in drawn.axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in found}  # one of each series in all panels
    entry = max(2.2, 0.6 + 0.07 * max(map(len, handles), default=0))  # inches that the longest one takes
    legend_rows = math.ceil(len(handles) / max(1, int(width // entry)))
    above, legend, below = 0.2 + 0.22 * len(titles), 0.22 * legend_rows, 0.12 + 0.17 * len(lines)
    height = 3.5 * rows + above + legend + below
    drawn.set_size_inches(width, height)
    rect = (0.01, (below + legend + 0.06) / height, 0.98, 1 - (above + legend + below + 0.06) / height)
    drawn.set_layout_engine(ConstrainedLayoutEngine(rect=rect, wspace=0.03, hspace=0.03))
    drawn.text(0.02, 1 - 0.12 / height, "\n".join(titles), fontsize=12, fontweight="bold", va="top")
    if handles:
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, below / height)}
        drawn.legend(handles.values(), handles.keys(), ncols=math.ceil(len(handles) / legend_rows), **place)
    text = "\n".join(lines)
    drawn.text(0.02, 0.08 / height, text, fontsize=8.5, va="bottom", color="#333333", linespacing=1.25)


def save(drawn: Drawn, folder: Path, name: str, pdf: bool = True) -> Path:
    """Write the PNG, of 256 colours, and a PDF without a date, so that the same table gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    path, pixels = folder / f"{name}.png", io.BytesIO()
    drawn.savefig(pixels)
    Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if pdf:
        drawn.set_layout_engine("none")  # the layout of the first file holds for the second
        drawn.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(drawn)
    return path
