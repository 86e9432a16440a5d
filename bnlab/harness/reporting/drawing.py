"""Figures: their panels in rows, the words that these share, one legend; their captions, and their files."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawn
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from PIL import Image

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.experiment import Figure, Span, Tables
from bnlab.harness.reporting.style import RC, thin_labels, write_out_decades
from bnlab.harness.updates import SCHEDULES

# Inches.
_NARROW, _WIDE = 4.2, 5.4  # a figure with one panel across; with several, or with names beside its panel
_TALL, _LOW = 3.2, 2.35  # a panel that is alone across, and one among several
_LEAST = 0.9  # a panel of printed numbers whose names take less
_LINE = 0.2  # of words
_TITLE = 1.2  # lines of words that a line of the title takes
_LETTER = 0.081


def write(name: str, figure: Figure, tables: Tables, folder: Path, pdf: bool = True) -> Figure:
    """Write a figure as a PNG of 256 colours for pages, and as a PDF for papers; the same table gives the same files.

    The PDF has no title: a paper says in the caption what is drawn. What stands below a figure has a PDF of its own.

    Returns the figure, whose caption says what is drawn of how many seeds; raises NoRows if there is nothing to draw.
    """
    frame = figure.score(tables)
    if frame["mean"].isna().all():  # also of no rows
        raise NoRows(f"figure {name}: the tables have no value for it")
    if "panel" not in frame:
        raise UserError("its score has no column 'panel', by which rows are drawn; name it: by=(\"panel\", ...)")

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    parts = {name: (figure, frame)}
    if figure.below is not None:
        below = replace(figure, title="", plot=figure.below.plot, spans=())
        parts[f"{name}_{figure.below.ending}"] = (below, figure.below.score(tables))
    with plt.rc_context(RC):
        drawings = {stem: draw(part, of_part) for stem, (part, of_part) in parts.items()}
        image = _render(drawings.values())
        octree = Image.Quantize.FASTOCTREE  # which keeps the colours of lines, where faint bands have many
        image.quantize(256, octree, dither=Image.Dither.NONE).save(path, optimize=True)
        if pdf:
            for stem, drawn in drawings.items():
                _remove_title(drawn)
                drawn.savefig(folder / f"{stem}.pdf", metadata={"CreationDate": None})
        for drawn in drawings.values():
            plt.close(drawn)
    return replace(figure, caption=_write_caption(figure, frame, tables))


def _render(drawings: Iterable[Drawn]) -> Image.Image:
    """Render drawings as one picture, below each other on white."""
    pictures = []
    for drawn in drawings:
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3])

    width = max(picture.shape[1] for picture in pictures)
    whole = []
    for picture in pictures:
        margin = width - picture.shape[1]
        whole.append(np.pad(picture, ((0, 0), (0, margin), (0, 0)), constant_values=255))
    return Image.fromarray(np.concatenate(whole))


def _remove_title(drawn: Drawn) -> None:
    """Remove the title and the room that it takes; to draw all panels a second time would take longer."""
    title = drawn.get_suptitle()
    if not title:
        return
    drawn.suptitle("")
    width, height = drawn.get_size_inches()
    drawn.set_size_inches(width, height - _TITLE * (title.count("\n") + 1) * _LINE)
    ConstrainedLayoutEngine().execute(drawn)


def draw(figure: Figure, frame: pd.DataFrame) -> Drawn:
    """Draw the rows of all panels, in order of appearance, with the labels that these share and one legend below."""
    panels = list(frame["panel"].unique())
    count = len(panels)
    columns = count if count in (1, 3) else 2  # no more than two of many: words stay legible on a telephone
    rows = math.ceil(count / columns)
    lines = figure.plot.count_lines(frame)
    has_room = columns > 1 or lines > 0
    width = _WIDE if has_room else _NARROW
    height = _TALL if columns == 1 else _LOW
    if "printed" in frame and frame["printed"].all():
        height = _LEAST if lines else _LOW
    if rows > 3:
        height *= 0.75
    height = max(height, 0.5 + lines * _LINE)

    drawn, grid = plt.subplots(rows, columns, sharey=True, squeeze=False)
    axes = dict(zip(panels, grid.flat, strict=False))
    figure.plot.draw(frame, axes)
    for ax in axes.values():
        _draw_spans(ax, figure.spans)
    for ax in grid.flat[count:]:
        ax.set_axis_off()

    handles: dict[str, Artist] = {}
    letters = int((width / columns - 0.3) / _LETTER)  # in a line of a panel
    letters_below = letters
    if isinstance(grid[0, 0].yaxis.get_major_formatter(), FuncFormatter):  # names stand beside all panels
        names = [label.get_text() for label in grid[0, 0].get_yticklabels()]
        beside = max(len(line) for name in names for line in name.split("\n"))
        letters_below = int(((width - beside * _LETTER) / columns - 0.2) / _LETTER)
    title_lines = 0
    for place, (panel, ax) in enumerate(axes.items()):
        write_out_decades(ax)
        thin_labels(ax, letters_below)
        parts = [str(panel)]
        if len(str(panel)) > letters:
            parts = re.split(r"(?<=,) | (?=\()", str(panel))
        ax.set_title("\n".join(textwrap.fill(part, letters) for part in parts))
        title_lines = max(title_lines, ax.get_title().count("\n"))
        is_labelled = place == 1 if count == 3 else place + columns >= count  # under the middle one of three
        label_width = width if count == 3 else width / columns
        across = textwrap.fill(ax.get_xlabel(), int(0.8 * label_width / _LETTER))
        upward = textwrap.fill(ax.get_ylabel(), int(0.85 * rows * height / _LETTER))
        ax.set(xlabel=across if is_labelled else "", ylabel="")
        ax.yaxis.set_label_coords(0, 0)  # else ticks are measured to place the empty label
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    drawn.supylabel(upward)

    title = textwrap.wrap(figure.title, int(width / _LETTER / 1.3))
    drawn.suptitle("\n".join(title), x=0.02, ha="left")
    letters = 6 + max(map(len, handles), default=0)  # of an entry of the legend, with its handle
    entries = max(1, int(width / _LETTER / letters))  # in a row
    if handles:
        drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=entries)
    layout = ConstrainedLayoutEngine()
    words = _TITLE * len(title) + 1 + across.count("\n") + rows * title_lines + math.ceil(len(handles) / entries)
    drawn.set_size_inches(width, rows * height + words * _LINE)
    layout.execute(drawn)  # once: a figure that has a layout engine is drawn a further time whenever it is saved
    return drawn


def _draw_spans(ax: Axes, spans: Iterable[Span]) -> None:
    """Draw stretches of the horizontal axis in grey; each line has dashes of its own."""
    for place, span in enumerate(spans):
        if span.low < span.high:
            ax.axvspan(span.low, span.high, color="#999999", alpha=0.25, linewidth=0, label=span.words)
        else:
            style = ("--", ":", "-.")[place % 3]
            ax.axvline(span.low, color="#777777", linewidth=1.2, linestyle=style, label=span.words)


def _write_caption(figure: Figure, frame: pd.DataFrame, tables: Tables) -> str:
    """Say how to read the figure, with a sentence on what is drawn of how many seeds."""
    runs = tables["runs"]
    schedules = {*runs.get("optimizer.schedule", ())}
    schedule = ""
    if len(schedules) == 1:
        schedule = SCHEDULES.get(schedules.pop(), "")
    sizes = sorted(runs["batch_size"].unique())
    batch_size = ", ".join(map(str, sizes))
    sentences = [figure.caption.format(schedule=schedule, batch_size=batch_size)]

    if "printed" in frame:
        frame = frame[~frame["printed"].astype(bool)]
    fewest = frame["n"].min()
    most = frame["n"].max()
    has_intervals = bool(figure.plot.intervals) and frame["low"].notna().any()
    if has_intervals or most > 1:
        means = "Geometric means over seeds" if frame["log"].all() else "Means over seeds"
        if has_intervals:
            means = f"{means}, {figure.plot.intervals}: 95% intervals"
        sentences.append(f"{means};")
    if most > 0:  # nothing is said of what was not measured
        span = f"{fewest}–{most}" if fewest < most else f"{most}"
        noun = "seeds" if most > 1 else "seed"
        sentences.append(f"n\u00a0=\u00a0{span} {noun}.")
    return re.sub(" +", " ", " ".join(sentences)).strip()
