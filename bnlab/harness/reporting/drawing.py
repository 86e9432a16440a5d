"""Figures as files: their panels, the words that these share, one legend, and their captions."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, rc_params_from_file, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawn
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.frames import name_panels, put_in_order
from bnlab.harness.reporting.looks import RC
from bnlab.harness.reporting.plots import Curves, Forest
from bnlab.harness.reporting.printed import THEIRS, describe_printed, make_panel, name_span
from bnlab.harness.reporting.question import POST_HOC, Figure, Printed, Tables
from bnlab.harness.reporting.wording import list_values
from bnlab.harness.updates import SCHEDULES

# In inches: of a figure with one panel across, or with several or names beside it; of a panel alone across, or not.
_NARROW, _WIDE = 4.2, 5.4
_TALL, _LOW = 3.0, 2.1
_LETTERS = 110  # in an inch, of words of one point, where lines are broken
_NAMES = {"glyphs": "characters", "cifar10": "CIFAR-10", "cnn": "CNN", "resnet": "ResNet", "mlp": "MLP"}
FORMATS: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Formats of files for print, with what is written into them: no date, so that the same table gives the same file."""


@dataclass(frozen=True)
class PrintFile:
    """The file of a figure for print. It has no title: a paper says in the caption what is drawn.

    Attributes:
        width: of the figure, in inches; None: as on pages.
        format: one of `FORMATS`.
        style: a style file of matplotlib's, whose settings count in place of `looks.RC`; None: none.
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


_AS_ON_PAGES = PrintFile()


def write(
    name: str, figure: Figure, tables: Tables, folder: Path, print_file: PrintFile | None = _AS_ON_PAGES
) -> Figure:
    """Write a figure as a PNG of 256 colours for pages, and another file for print.

    The same table gives the same files. For print, a panel of numbers that a paper prints has a file of its own;
    `print_file` says how both look, or None: there are none.

    Returns the figure, whose caption says what is drawn of how many seeds; raises NoRows if there is nothing to draw.
    """
    figure, frame = read_points(figure, tables)
    if frame["mean"].isna().all():  # also of no rows
        raise NoRows(f"figure {name}: the tables have no value for it")
    folder.mkdir(parents=True, exist_ok=True)

    parts = {name: (figure, frame)}
    printed = [number for number in figure.printed if not number.span]
    if printed:
        plot, numbers = make_panel(figure.plot, printed)
        parts[f"{name}_{THEIRS}"] = (replace(figure, title="", plot=plot, printed=()), numbers)

    with rc_context(RC):
        pictures = [_render(draw(part, rows, networks=_describe(part, rows, tables))) for part, rows in parts.values()]
    # A palette makes files small, of which many are committed. This one keeps the colours that are far from all others,
    # those of lines and of faint bands; an octree's lost the bands.
    picture = _stack(pictures).quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(folder / f"{name}.png", optimize=True)

    if print_file is not None:
        with rc_context(print_file.read_settings()):
            for stem, (part, rows) in parts.items():
                drawn = draw(replace(part, title=""), rows, print_file.width)
                drawn.savefig(folder / f"{stem}.{print_file.format}", metadata=FORMATS[print_file.format])
    return replace(figure, caption=_write_caption(figure, frame, tables))


def read_points(figure: Figure, tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Compute what is drawn, with its names: the figure as it is drawn, and the rows of its panels."""
    frame = figure.score(tables)
    plot = figure.plot
    for column, names in figure.names.items():
        frame = put_in_order(frame, column, names)
        frame[column] = frame[column].replace(dict(names))
        # Values that have colours give way to their names, which a legend shows as they are.
        if isinstance(plot, Forest) and plot.series:
            if plot.series == column:
                plot = replace(plot, series="words")
                frame["words"] = frame[column]
        elif isinstance(plot, Curves | Forest) and plot.by == column:
            plot = replace(plot, by="words")
            frame["words"] = frame[column]

    # An empty text asks for a single panel. Without a text, the panels of the score stay.
    if figure.panels:
        frame = name_panels(frame, figure.panels)
    elif figure.panels is not None or "panel" not in frame:
        frame = frame.assign(panel="")
    return replace(figure, plot=plot), frame


def _describe(figure: Figure, frame: pd.DataFrame, tables: Tables) -> str:
    """Say in short which networks are drawn, and how many: a picture is seen without its page."""
    if "printed" in frame:
        return ""
    runs = tables["runs"]
    words = [figure.networks]
    if not figure.networks:
        columns = [column for column in ("data", "model") if column in runs]
        # Of an import path, which own code has as its name, the end says enough.
        words = [list_values(runs[column].replace(_NAMES).str.rpartition(".")[2]) for column in columns]
    words.append(f"n = {_count_seeds(frame)}" if "n" in frame else f"{frame['run'].nunique()} networks")
    if POST_HOC in figure.title:
        words.append(f"{POST_HOC} post hoc")
    return "; ".join(words)


def _count_seeds(frame: pd.DataFrame) -> str:
    """Count the seeds of means, as a range where they differ."""
    return "–".join(map(str, sorted({frame["n"].min(), frame["n"].max()})))


def _render(drawn: Drawn) -> Image.Image:
    """Render a figure."""
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _stack(pictures: list[Image.Image]) -> Image.Image:
    """Put pictures below each other on white."""
    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def draw(figure: Figure, frame: pd.DataFrame, width: float | None = None, networks: str = "") -> Drawn:
    """Draw the rows of all panels, in order of appearance, with the labels that these share and one legend below.

    Args:
        figure: what is drawn.
        frame: the rows.
        width: in inches; None: as wide as it takes on a page. Panels keep their shape.
        networks: which are drawn, a small line above the legend.
    """
    plot = figure.plot
    panels = list(frame["panel"].unique())
    # No more than two of many: words stay legible on a telephone.
    columns = min(len(panels) if len(panels) in (1, 3) else 2, plot.panels_across)
    rows = math.ceil(len(panels) / columns)
    least = plot.find_height(frame)
    usual_width = _WIDE if columns > 1 or least else _NARROW
    width = width or usual_width
    height = least or (_TALL if columns == 1 else _LOW) * width / usual_width

    # Higher than it will be: the layout gives up where labels do not fit, and their heights are known only once they
    # are drawn.
    drawn = Drawn(figsize=(width, rows * height + 12), layout="constrained")
    FigureCanvasAgg(drawn)  # measures words; without one, each measurement would make its own
    grid = drawn.subplots(rows, columns, sharey=plot.shares_y, squeeze=False)
    # The last row may have more axes than there are panels left.
    for ax in grid.flat[len(panels) :]:
        ax.remove()
    axes = dict(zip(panels, grid.flat, strict=False))
    plot.draw(frame, axes)
    for ax in axes.values():
        _draw_spans(ax, figure.printed)
    letters = _LETTERS / rcParams["font.size"]
    _write_words(axes, columns, int(letters * width / columns), int(letters * height))
    drawn.suptitle(figure.title, x=0.02, ha="left", wrap=True)
    _add_legend(drawn, axes.values(), int(letters * width), networks)

    # Panels keep their shape however many words there are: the figure is as high as these need.
    ConstrainedLayoutEngine().execute(drawn)
    lacking = height - grid[0, 0].get_position().height * drawn.get_figheight()
    drawn.set_figheight(drawn.get_figheight() + rows * lacking)
    return drawn


def _write_words(axes: Mapping[Any, Axes], columns: int, across: int, upward: int) -> None:
    """Write the names of panels, and labels beside each row and below each column, or the middle one of three.

    Args:
        axes: by the names of panels.
        columns: of panels.
        across, upward: letters that a panel is as wide, and as high as.
    """
    labelled = list(axes.values())[-columns:]
    # The middle one of three has no neighbours that its label could run into.
    gap = 4
    if columns == 3:
        labelled = labelled[1:2]
        gap = 1
    labels = {ax.get_xlabel() for ax in axes.values()}
    for number, (panel, ax) in enumerate(axes.items()):
        ax.set_title(textwrap.fill(str(panel), across - 2))
        is_labelled = ax in labelled or len(labels) > 1
        ax.set_xlabel(textwrap.fill(ax.get_xlabel(), across - gap) if is_labelled else "")
        ax.set_ylabel("" if number % columns else textwrap.fill(ax.get_ylabel(), upward))


def _add_legend(drawn: Drawn, axes: Iterable[Axes], letters: int, networks: str) -> None:
    """Add one legend below all panels, with each label once, and above it which networks are drawn."""
    handles: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    if not handles and not networks:
        return
    entries = letters // (7 + max(map(len, handles), default=0))  # with their handles
    drawn.legend(
        list(handles.values()),
        list(handles),
        title=networks,
        title_fontproperties={"size": "small"},
        loc="outside lower center",
        ncols=max(1, entries),
    )


def _draw_spans(ax: Axes, printed: Iterable[Printed]) -> None:
    """Draw stretches of the horizontal axis in grey; each line has dashes of its own."""
    spans = [number for number in printed if number.span]
    for place, number in enumerate(spans):
        low, high = number.span
        if low < high:
            ax.axvspan(low, high, color="#999999", alpha=0.25, linewidth=0, label=name_span(number))
        else:
            style = ("--", ":", "-.")[place % 3]
            ax.axvline(low, color="#777777", linewidth=1.2, linestyle=style, label=name_span(number))


def _write_caption(figure: Figure, frame: pd.DataFrame, tables: Tables) -> str:
    """Say how to read the figure, with a sentence on what is drawn of how many seeds."""
    runs = tables["runs"]
    schedules = {*runs.get("optimizer.schedule", ())}
    schedule = ""
    if len(schedules) == 1:
        schedule = SCHEDULES.get(schedules.pop(), "")
    sizes = sorted(runs["batch_size"].unique())
    batch_size = ", ".join(map(str, sizes))
    caption = figure.caption.format(schedule=schedule, batch_size=batch_size)
    sentences = [caption, *describe_printed(figure.printed)]

    if "n" not in frame:
        # Each row is one network, not a mean over seeds.
        return " ".join(sentences)
    if "printed" in frame:
        # A paper's numbers are of no seeds of ours.
        frame = frame[~frame["printed"].astype(bool)]
    most = frame["n"].max()
    has_intervals = bool(figure.plot.intervals) and frame["low"].notna().any()
    if has_intervals or (most > 1 and "seed" not in frame):  # else each seed has a line
        means = f"{'Geometric means' if frame['log'].all() else 'Means'} over seeds"
        if has_intervals:
            means = f"{means}, {figure.plot.intervals}: 95% intervals"
            if (frame["low"].isna() & (frame["n"] > 1)).any():
                means = f"{means} (none where all seeds are alike)"
        sentences.append(f"{means};")
    if most > 0:  # nothing is said of what was not measured
        ending = "s" if most > 1 else ""
        sentences.append(f"n\u00a0=\u00a0{_count_seeds(frame)} seed{ending}.")
    return re.sub(" +", " ", " ".join(sentences)).strip()
