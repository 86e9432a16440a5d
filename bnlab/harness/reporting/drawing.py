"""Figures: their panels in rows, the words that these share, one legend; their captions, and their files."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import rc_params_from_file
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

# Widths of figures, in inches.
_NARROW = 4.2  # with one panel across
_WIDE = 5.4  # with several, or with names beside its panel
# Heights of panels, in inches.
_TALL = 3.2  # one that is alone across
_LOW = 2.35  # one among several
_LEAST = 0.9  # one of printed numbers whose names take less
# Words of the font size `_FONT`, in inches. With another size both change in proportion.
_LINE_HEIGHT = 0.2
_LETTER_WIDTH = 0.081
_FONT = 10
_TITLE = 1.2  # lines of words that a line of the title takes
FORMATS: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Formats of files for papers, with what is written into them: no date, so that the same table gives the same file."""


@dataclass(frozen=True)
class PaperFile:
    """The file of a figure for papers. It has no title: a paper says in the caption what is drawn.

    Attributes:
        width: of the figure, in inches; None: as on pages.
        format: one of `FORMATS`.
        style: a style file of matplotlib's, whose settings count in place of `style.RC`; None: none.
    """

    width: float | None = None
    format: str = "pdf"
    style: Path | None = None

    def read_settings(self) -> dict[Any, Any]:
        """Read matplotlib's settings for this file; UserError where the style file cannot be read."""
        if self.style is None:
            return RC
        try:
            # Of a setting that there is not matplotlib says so by itself.
            return RC | dict(rc_params_from_file(self.style, use_default_template=False))
        except (OSError, ValueError) as error:
            raise UserError(f"figure.style={self.style}: {error}") from error


_AS_ON_PAGES = PaperFile()


def write(name: str, figure: Figure, tables: Tables, folder: Path, paper: PaperFile | None = _AS_ON_PAGES) -> Figure:
    """Write a figure as a PNG of 256 colours for pages, and another file for papers.

    The same table gives the same files. In that for papers, what stands below a figure has a file of its own; `paper`
    says how it looks, or None: there is none.

    Returns the figure, whose caption says what is drawn of how many seeds; raises NoRows if there is nothing to draw.
    """
    frame = figure.score(tables)
    if frame["mean"].isna().all():  # also of no rows
        raise NoRows(f"figure {name}: the tables have no value for it")
    if "panel" not in frame:
        raise UserError("its score has no column 'panel', by which rows are drawn; name it: by=(\"panel\", ...)")

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"

    # What stands below a figure is drawn by itself, because its PDF is a file of its own.
    parts = {name: (figure, frame)}
    if figure.below is not None:
        below = replace(figure, title="", plot=figure.below.plot, spans=())
        parts[f"{name}_{figure.below.ending}"] = (below, figure.below.score(tables))

    with plt.rc_context(RC):
        drawings = {stem: draw(part, rows) for stem, (part, rows) in parts.items()}
        # The picture keeps the title, and is rendered before that is removed for the other file.
        image = _render(drawings.values())
        # A palette makes files small, of which many are committed. This one keeps the colours that are far from all
        # others, those of lines and of faint bands; an octree's lost the bands.
        far_apart = Image.Quantize.MAXCOVERAGE
        image.quantize(256, far_apart, dither=Image.Dither.NONE).save(path, optimize=True)
        if paper == _AS_ON_PAGES:
            for stem, drawn in drawings.items():
                _remove_title(drawn)
                drawn.savefig(folder / f"{stem}.pdf", metadata=FORMATS["pdf"])
        for drawn in drawings.values():
            plt.close(drawn)
    if paper is not None and paper != _AS_ON_PAGES:
        _write_for_paper(parts, folder, paper)
    return replace(figure, caption=_write_caption(figure, frame, tables))


def _write_for_paper(parts: Mapping[str, tuple[Figure, pd.DataFrame]], folder: Path, paper: PaperFile) -> None:
    """Draw the parts of a figure again as a paper wants them, and write each into a file."""
    with plt.rc_context(paper.read_settings()):
        for stem, (part, frame) in parts.items():
            drawn = draw(replace(part, title=""), frame, paper.width)
            drawn.savefig(folder / f"{stem}.{paper.format}", metadata=FORMATS[paper.format])
            plt.close(drawn)


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
    drawn.set_size_inches(width, height - _TITLE * (title.count("\n") + 1) * _LINE_HEIGHT)
    ConstrainedLayoutEngine().execute(drawn)


@dataclass(frozen=True)
class _Grid:
    """How the panels of a figure are arranged. Lengths are in inches.

    Attributes:
        count: of panels.
        columns: of panels.
        width: of the figure.
        height: of a panel.
        font: size of words, relative to the one for which `_LETTER_WIDTH` and `_LINE_HEIGHT` hold.
    """

    count: int
    columns: int
    width: float
    height: float
    font: float

    @property
    def rows(self) -> int:
        return math.ceil(self.count / self.columns)

    @property
    def panel_width(self) -> float:
        return self.width / self.columns

    @property
    def line_height(self) -> float:
        """The height of a line of words."""
        return self.font * _LINE_HEIGHT

    def count_letters(self, length: float) -> int:
        """Count the letters that a line of this length holds."""
        return int(length / (self.font * _LETTER_WIDTH))


def draw(figure: Figure, frame: pd.DataFrame, width: float | None = None) -> Drawn:
    """Draw the rows of all panels, in order of appearance, with the labels that these share and one legend below.

    Args:
        figure: what is drawn.
        frame: the rows.
        width: in inches; None: as wide as it takes on a page. Panels keep their shape.
    """
    panels = list(frame["panel"].unique())
    grid = _arrange(figure, frame, len(panels), width)
    drawn, grid_of_axes = plt.subplots(grid.rows, grid.columns, sharey=True, squeeze=False)
    # The last row may have more axes than there are panels left; those are hidden below.
    axes = dict(zip(panels, grid_of_axes.flat, strict=False))
    figure.plot.draw(frame, axes)
    for ax in axes.values():
        _draw_spans(ax, figure.spans)
        write_out_decades(ax)
    for ax in grid_of_axes.flat[grid.count :]:
        ax.set_axis_off()

    # Words take room of their own, so that panels keep their shape however many lines there are.
    lines = _write_title(drawn, figure.title, grid)
    lines += grid.rows * _name_panels(axes, grid)
    lines += _label_axes(drawn, [*axes.values()], grid)
    lines += _add_legend(drawn, axes.values(), grid)
    drawn.set_size_inches(grid.width, grid.rows * grid.height + lines * grid.line_height)
    # Once: a figure that has a layout engine is drawn a further time whenever it is saved.
    ConstrainedLayoutEngine().execute(drawn)
    return drawn


def _arrange(figure: Figure, frame: pd.DataFrame, count: int, width: float | None) -> _Grid:
    """Choose how so many panels are arranged, and how large they are."""
    font = plt.rcParams["font.size"] / _FONT
    columns = count if count in (1, 3) else 2  # no more than two of many: words stay legible on a telephone
    names = figure.plot.count_lines(frame)
    usual_width = _WIDE if columns > 1 or names > 0 else _NARROW
    usual_height = _TALL if columns == 1 else _LOW
    if width is None:
        width = usual_width

    height = usual_height * width / usual_width
    if "printed" in frame and frame["printed"].all():
        height = _LEAST if names else _LOW * width / usual_width
    if math.ceil(count / columns) > 3:
        height *= 0.75
    # Names one below the other need their height, whatever shape a panel should have.
    height = max(height, 0.5 + names * font * _LINE_HEIGHT)
    return _Grid(count, columns, width, height, font)


def _write_title(drawn: Drawn, title: str, grid: _Grid) -> float:
    """Write the title above all panels; the lines of words that it takes."""
    letters = int(grid.width / (grid.font * _LETTER_WIDTH) / 1.3)  # those of a title are larger, and bold
    lines = textwrap.wrap(title, letters)
    drawn.suptitle("\n".join(lines), x=0.02, ha="left")
    return _TITLE * len(lines)


def _name_panels(axes: Mapping[Any, Axes], grid: _Grid) -> int:
    """Write the name of each panel above it; the lines that the longest one takes more than one."""
    letters = grid.count_letters(grid.panel_width - 0.3)
    most_breaks = 0
    for panel, ax in axes.items():
        parts = [str(panel)]
        if len(str(panel)) > letters:
            # A long name is first broken behind commas and before brackets, where its parts end.
            parts = re.split(r"(?<=,) | (?=\()", str(panel))
        ax.set_title("\n".join(textwrap.fill(part, letters) for part in parts))
        most_breaks = max(most_breaks, ax.get_title().count("\n"))
    return most_breaks


def _label_axes(drawn: Drawn, axes: Sequence[Axes], grid: _Grid) -> int:
    """Thin the labels of ticks, and write those of the axes; panels share the upward one. Lines of the others."""
    first = axes[0]
    letters = grid.count_letters(grid.panel_width - 0.3)
    # matplotlib has this formatter where labels are texts: names beside the panels leave them less room.
    if isinstance(first.yaxis.get_major_formatter(), FuncFormatter):
        names = [label.get_text() for label in first.get_yticklabels()]
        beside = max(len(part) for name in names for part in name.split("\n"))
        letters = grid.count_letters((grid.width - beside * grid.font * _LETTER_WIDTH) / grid.columns - 0.2)

    is_one_row_of_three = grid.count == 3
    room = grid.width if is_one_row_of_three else grid.panel_width
    across = [textwrap.fill(ax.get_xlabel(), grid.count_letters(0.8 * room)) for ax in axes]
    drawn.supylabel(textwrap.fill(first.get_ylabel(), grid.count_letters(0.85 * grid.rows * grid.height)))
    for number, ax in enumerate(axes):
        thin_labels(ax, letters)
        # No panel stands below it, which also holds above a gap in the last row.
        is_labelled = number + grid.columns >= grid.count
        if is_one_row_of_three:
            is_labelled = number == 1  # the middle one, for all
        ax.set(xlabel=across[number] if is_labelled else "", ylabel="")
        ax.yaxis.set_label_coords(0, 0)  # else ticks are measured to place the empty label
    return 1 + max(label.count("\n") for label in across)


def _add_legend(drawn: Drawn, axes: Iterable[Axes], grid: _Grid) -> int:
    """Add one legend below all panels, with each label once; the lines that it takes."""
    handles: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    if not handles:
        return 0
    letters = 6 + max(map(len, handles))  # of an entry, with its handle
    entries = max(1, int(grid.width / (grid.font * _LETTER_WIDTH) / letters))  # in a row
    drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=entries)
    return math.ceil(len(handles) / entries)


def _draw_spans(ax: Axes, spans: Iterable[Span]) -> None:
    """Draw stretches of the horizontal axis in grey; each line has dashes of its own."""
    for number, span in enumerate(spans):
        if span.low < span.high:
            ax.axvspan(span.low, span.high, color="#999999", alpha=0.25, linewidth=0, label=span.words)
        else:
            style = ("--", ":", "-.")[number % 3]
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

    if "n" not in frame:
        # Each row is one network, not a mean over seeds.
        return sentences[0]
    if "printed" in frame:
        # A paper's numbers are of no seeds of ours.
        frame = frame[~frame["printed"].astype(bool)]
    fewest = frame["n"].min()
    most = frame["n"].max()
    has_intervals = bool(figure.plot.intervals) and frame["low"].notna().any()
    if has_intervals or most > 1:
        means = f"{'Geometric means' if frame['log'].all() else 'Means'} over {figure.over}s"
        if has_intervals:
            means = f"{means}, {figure.plot.intervals}: 95% intervals"
            if (frame["low"].isna() & (frame["n"] > 1)).any():
                means = f"{means} (none where all {figure.over}s are alike)"
        sentences.append(f"{means};")
    if most > 0:  # nothing is said of what was not measured
        count = f"{fewest}–{most}" if fewest < most else f"{most}"
        ending = "s" if most > 1 else ""
        sentences.append(f"n\u00a0=\u00a0{count} {figure.over}{ending}.")
    return re.sub(" +", " ", " ".join(sentences)).strip()
