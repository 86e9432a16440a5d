"""Figures: their panels in rows, the words that these share, one legend; their captions, and their files."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from PIL import Image

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.experiment import Figure, Tables
from bnlab.harness.reporting.style import PAGE, PAPER, PIXELS, Format, made_for, write_out_decades
from bnlab.harness.updates import SCHEDULES

_GREY = "#333333"
_MANY_ROWS = 3  # of panels; more of them are less high


def complete(name: str, figure: Figure, tables: Tables) -> Figure:
    """Score a figure once, and complete its caption with what is drawn of how many seeds.

    Args:
        name: of the figure, for messages.
        figure: what to draw.
        tables: those of its experiment.

    Raises:
        NoRows: there is nothing to draw.
    """
    frame = _score(name, figure, tables)
    return replace(figure, caption=_write_caption(figure, frame, tables), score=lambda tables: frame)


def draw(name: str, figure: Figure, tables: Tables, form: Format = PAGE) -> Drawn:
    """Draw all panels, in order of appearance, with one legend below.

    Args:
        name: of the figure, for messages.
        figure: what to draw.
        tables: those of its experiment.
        form: the sizes; `style.made_for` gives letters and lines theirs.

    Raises:
        NoRows: there is nothing to draw.
    """
    frame = _score(name, figure, tables)
    panels = list(frame["panel"].unique())
    count = len(panels)
    columns = _count_columns(count)
    rows = math.ceil(count / columns)
    drawn, grid = plt.subplots(rows, columns, sharey=True, squeeze=False)
    axes = dict(zip(panels, grid.flat, strict=False))
    figure.plot.draw(frame, axes)

    lines = figure.plot.count_lines(frame)
    is_wide = columns > 1 or lines > 0
    width = form.wide if is_wide else form.narrow
    longest = _count_letters(width / columns - 0.3, form.letters)
    titles = [_break(str(panel), longest) for panel in panels]
    for title, ax in zip(titles, axes.values(), strict=True):
        ax.set_title(title)
        write_out_decades(ax)
    for ax in grid.flat[count:]:
        ax.set_axis_off()

    title_lines = max(title.count("\n") for title in titles)
    height = _choose_height(columns, rows, lines, form) + title_lines * _line(form.letters)
    sizes = _Sizes(width, rows * height, form)
    _add_words(drawn, figure.title, list(axes.values()), sizes)
    return drawn


def _choose_height(columns: int, rows: int, lines: float, form: Format) -> float:
    """Choose the height of each panel in inches, its title without further lines included.

    Args:
        columns, rows: the numbers of panels.
        lines: of words that are one below the other in a panel.
        form: the format.
    """
    height = form.tall if columns == 1 else form.low
    if rows > _MANY_ROWS:
        height *= 0.75
    return max(height, 0.5 + lines * _line(form.letters))


def _break(title: str, longest: int) -> str:
    """Break a panel's title that is too long: after commas and before brackets, if it has any."""
    if len(title) <= longest:
        return title
    parts = re.split(r"(?<=,) | (?=\()", title)
    return "\n".join(textwrap.fill(part, longest) for part in parts)


def _score(name: str, figure: Figure, tables: Tables) -> pd.DataFrame:
    """Compute the frame of a figure; refuse one without a value, or without panels."""
    frame = figure.score(tables)
    if frame["mean"].isna().all():  # also of no rows
        raise NoRows(f"figure {name}: the tables have no value for it")
    if "panel" not in frame:
        raise UserError("its score has no column 'panel', by which rows are drawn; name it: by=(\"panel\", ...)")
    return frame


def _count_columns(panels: int) -> int:
    """Count the panels of a row: no more than two where there are many, so that words stay legible on a telephone."""
    return panels if panels in (1, 3) else 2


def _write_caption(figure: Figure, frame: pd.DataFrame, tables: Tables) -> str:
    """Say how to read the figure, with a sentence on what is drawn of how many seeds."""
    runs = tables["runs"]
    schedule = _say_schedule(runs)
    sizes = sorted(runs["batch_size"].unique())
    batch_size = ", ".join(map(str, sizes))
    caption = figure.caption.format(schedule=schedule, batch_size=batch_size)

    has_intervals = bool(figure.plot.intervals) and frame["low"].notna().any()
    means = ""
    if has_intervals or frame["n"].max() > 1:
        means = "Geometric means over seeds" if frame["log"].all() else "Means over seeds"
    if has_intervals:
        means = f"{means}, {figure.plot.intervals}: 95% intervals"
    if means:
        means = f"{means};"

    sentences = f"{caption} {means} {_say_seeds(frame)}"
    return re.sub(" +", " ", sentences).strip()


def _say_schedule(runs: pd.DataFrame) -> str:
    """Write a sentence on the learning rate, if all networks have the same schedule."""
    schedules = {*runs.get("optimizer.schedule", ())}
    if len(schedules) != 1:
        return ""
    return SCHEDULES.get(schedules.pop(), "")


def _say_seeds(frame: pd.DataFrame) -> str:
    """Say how many seeds means are of, as `n = 5–15 seeds.`; nothing of what was not measured, whose n is 0."""
    low = frame["n"].min()
    high = frame["n"].max()
    if high == 0:
        return ""
    span = str(low) if low == high else f"{low}–{high}"
    noun = "seeds" if high > 1 else "seed"
    return f"n\u00a0=\u00a0{span} {noun}."


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a figure in inches: its width, the height of all panels; and its format."""

    width: float
    panels: float
    form: Format


def _line(letters: float) -> float:
    """Height of a line of letters of this size in points, in inches."""
    return 1.4 * letters / 72


def _count_letters(width: float, letters: float) -> int:
    """Count the letters of this size that a line of this width in inches has."""
    return max(8, int(width * 72 / (0.58 * letters)))


def _add_words(drawn: Drawn, title: str, axes: list[Axes], sizes: _Sizes) -> None:
    """Put title and vertical label above, the label across and the legend below; say once what all panels share."""
    form = sizes.form
    width = sizes.width
    upward = _take_label(axes, "y")
    across = _take_label(axes, "x") if len(axes) > 1 else ""
    title_size = 1.2 * form.letters
    titles = textwrap.wrap(title, _count_letters(width - 0.2, 1.1 * title_size)) if form.has_title else []
    labels = textwrap.wrap(upward, _count_letters(width - 0.2, form.letters))

    legend = _add_legend(drawn, axes, width)
    line = _line(form.letters)
    above = 0.06 + _line(title_size) * len(titles) + line * len(labels)
    below = 0.06 + (line if across else 0.0)
    if legend:
        below += legend.get_window_extent().height / drawn.dpi
    height = above + sizes.panels + below
    drawn.set_size_inches(width, height)

    # From here on lengths are shares of the figure's, not inches.
    bottom = below / height
    panels = (0.01, bottom, 0.98, sizes.panels / height)
    layout = ConstrainedLayoutEngine(rect=panels, wspace=0.03, hspace=0.03)
    drawn.set_dpi(PIXELS)
    layout.execute(drawn)  # once: a figure that has a layout engine is drawn a further time whenever it is saved

    top = 1 - 0.06 / height
    drawn.text(0.02, top, "\n".join(titles), fontsize=title_size, fontweight="bold", va="top")
    top -= _line(title_size) * len(titles) / height
    drawn.text(0.02, top, "\n".join(labels), color=_GREY, va="top")
    drawn.text(0.5, bottom, across, color=_GREY, ha="center", va="top")


def _add_legend(drawn: Drawn, axes: list[Axes], width: float) -> Legend | None:
    """Add one legend of all panels at the bottom, in as few rows as a figure of this width in inches allows."""
    handles = _find_handles(axes)
    for columns in range(len(handles), 0, -1):
        legend = drawn.legend(
            handles.values(), handles.keys(), ncols=columns, loc="lower center", borderaxespad=0.2, columnspacing=1.2
        )
        if columns == 1 or legend.get_window_extent().width <= width * drawn.dpi:
            return legend
        legend.remove()
    return None


def _take_label(axes: list[Axes], which: str) -> str:
    """Take the label of an axis from panels that all have the same; empty where they have several."""
    labels = {getattr(ax, f"get_{which}label")() for ax in axes}
    if len(labels) > 1:
        return ""
    for ax in axes:
        ax.set(**{f"{which}label": ""})
        getattr(ax, f"{which}axis").set_label_coords(0, 0)  # else ticks are measured to place the empty label
    return str(labels.pop())


def _find_handles(axes: Iterable[Axes]) -> dict[str, Any]:
    """Find what the legend shows, by its words: one handle of each series in all panels."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


def write(name: str, figure: Figure, tables: Tables, folder: Path, pdf: bool = True) -> Path:
    """Write the PNG for pages, and a PDF for papers; the same table gives the same files.

    Args:
        name: of the files.
        figure: what to draw.
        tables: those of its experiment.
        folder: is made if it is missing.
        pdf: a PDF is written too, without a title, see `style.PAPER`.

    Returns:
        The path of the PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    with made_for(PAGE):
        drawn = draw(name, figure, tables)
        _save_pixels(drawn, path)
        plt.close(drawn)
    if pdf:
        with made_for(PAPER):
            drawn = draw(name, figure, tables, PAPER)
            drawn.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
            plt.close(drawn)
    return path


def _save_pixels(drawn: Drawn, path: Path) -> None:
    """Save a PNG of 256 colours."""
    pixels = io.BytesIO()
    drawn.savefig(pixels, format="rgba")
    size = drawn.canvas.get_width_height()
    image = Image.frombytes("RGBA", size, pixels.getvalue()).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
