"""Figures: their panels in rows, one legend, the caption with the sentence on lines, bands and n; and their files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.answer import describe_images
from bnlab.harness.reporting.experiment import Figure, Tables, count_layers, sort_layers
from bnlab.harness.reporting.plots import Curves, EstimatorCurves, Forest, HeatMap
from bnlab.harness.reporting.style import Axis, one_figure, write_out_decades
from bnlab.harness.schedule import SCHEDULES

_IN_A_ROW = 4


def draw(name: str, figure: Figure, tables: Tables, changes: str = "") -> Drawn:
    """All panels, in order of appearance, with one legend below and the caption under it.

    Args:
        name: of the figure, for messages.
        figure: what to draw.
        tables: those of its experiment.
        changes: a last sentence, on settings for which the caption was not written.

    Raises:
        NoRows: there is nothing to draw.
        UserError: there are more series than can be told apart.
    """
    read = _Read(tables)
    frame = figure.score(read)
    numbers = frame.select_dtypes("number")
    nullable = [column for column in numbers if pd.api.types.is_extension_array_dtype(numbers[column])]
    frame = frame.astype(dict.fromkeys(nullable, float))  # of which matplotlib would draw nothing
    panels = list(dict.fromkeys(frame["panel"]))
    if not panels:
        raise NoRows(f"figure {name}: the tables have no row for it")
    if not _have_places(figure, frame).any():
        raise NoRows(
            f"figure {name}: nothing can be drawn: all values are missing, infinite, or 0 on a logarithmic axis"
        )
    rows, columns = _choose_grid(len(panels))
    share_x = getattr(figure.plot, "share_x", False)
    drawn, grid = plt.subplots(rows, columns, sharex=share_x, sharey=True, squeeze=False)
    frame = count_layers(frame, tables)
    with one_figure():
        if begin := getattr(figure.plot, "begin", None):  # what all panels have one order of
            begin(frame, list(grid.flat[: len(panels)]))
        for ax, panel in zip(grid.flat, panels, strict=False):
            figure.plot(frame[frame["panel"] == panel], ax=ax)
            ax.set_title(str(panel))
    if finish := getattr(figure.plot, "finish", None):  # what all panels share
        finish(list(grid.flat[: len(panels)]))
    for ax in grid.flat:
        write_out_decades(ax)
        ax.xaxis.set_tick_params(labelbottom=True)  # also above others with the same axis
    for ax in grid[:, 1:].flat:
        ax.set_ylabel("")
    for ax in grid.flat[len(panels) :]:
        ax.set_axis_off()
    told = [*_describe(figure, tables, read.names), *_explain_lines(figure, frame), changes]
    caption = " ".join(filter(None, told))
    _add_text(drawn, figure.title, caption, rows, 3.5 * columns + 0.6)
    return drawn


class _Read(dict[str, pd.DataFrame]):
    """Tables in order of their layers, which note which of them are read."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._tables, self.names = tables, set[str]()

    def __getitem__(self, table: str) -> pd.DataFrame:
        self.names.add(table)
        return sort_layers(self._tables[table])


def _describe(figure: Figure, tables: Tables, read: set[str]) -> list[str]:
    """The caption, and of which images what was read is, if these are not the usual ones."""
    schedules = _list_found(tables, ["runs"], "optimizer.schedule")
    filled = {
        "schedule": SCHEDULES.get(schedules[0], "") if len(schedules) == 1 else "",
        "batch_size": _join(_list_found(tables, ["runs"], "batch_size")),
        "momentum": _join(_list_found(tables, read, "momentum")),
    }
    caption = figure.caption
    for name, said in filled.items():
        caption = caption.replace(f"{{{name}}}", said).replace("  ", " ").strip()
    images = describe_images({name: tables[name] for name in read})
    return [caption, images] if images else [caption]


def _list_found(tables: Tables, names: Iterable[str], column: str) -> list[Any]:
    """The values of a column in some of the tables."""
    cells = [tables[name][column].dropna() for name in names if column in tables.get(name, ())]
    return sorted(pd.concat(cells).unique(), key=lambda value: (isinstance(value, str), value)) if cells else []


def _join(values: Sequence[Any]) -> str:
    *first, last = [value if isinstance(value, str) else f"{value:.12g}" for value in values] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _choose_grid(panels: int) -> tuple[int, int]:
    """Rows and columns: four panels in a row at most, or five where only these fill all rows."""
    if panels > _IN_A_ROW + 1 and panels % _IN_A_ROW and panels % (_IN_A_ROW + 1) == 0:
        return panels // (_IN_A_ROW + 1), _IN_A_ROW + 1
    rows = math.ceil(panels / _IN_A_ROW)
    return rows, math.ceil(panels / rows)


def _add_text(drawn: Drawn, title: str, caption: str, rows: int, width: float) -> None:
    """Put the title above, legend and caption below, and give the figure the size that leaves each panel 3 inches."""
    titles = textwrap.wrap(title, int(width * 9.5))
    lines = textwrap.wrap(caption, int(width * 14.5))
    handles = _collect_handles(drawn.axes)
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


def _collect_handles(axes: list[Axes]) -> dict[str, Any]:
    """All series by their names; one may be missing in the first panel."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


def _explain_lines(figure: Figure, frame: pd.DataFrame) -> list[str]:
    """Sentences on how means and intervals are drawn, if the frame has any, and over how many seeds they are."""
    counts = frame["n"].dropna() if "n" in frame else frame.groupby("panel")["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    seeds = f"n\u00a0=\u00a0{low if low == high else f'{low}–{high}'}\u00a0{'seed' if high == 1 else 'seeds'}."
    if "log" not in frame:
        return [*_tell_undrawn(figure, frame), seeds]
    mean = "geometric mean" if frame["log"].dropna().all() else "mean"
    reading = getattr(figure.plot, "reading", Curves.reading)
    if _are_points(figure, frame):
        reading = Forest.reading
    if "low" in frame and frame["low"].isna().all():  # of one seed each, say
        reading = f"{reading.partition(',')[0].removesuffix('.')}."
    return [reading.format(mean=mean), *_tell_undrawn(figure, frame), seeds]


def _are_points(figure: Figure, frame: pd.DataFrame) -> bool:
    """Whether lines have one place across in each panel, so that none is drawn, see `style.draw_line`."""
    if not isinstance(figure.plot, Curves | EstimatorCurves):
        return False
    return bool((frame.groupby("panel")[figure.plot.x].nunique() <= 1).all())


def _tell_undrawn(figure: Figure, frame: pd.DataFrame) -> list[str]:
    """A sentence for each reason why something of the frame is not to be seen."""
    axes: dict[str, Axis] = getattr(figure.plot, "axes", {})
    values = _read_places(figure, frame)
    told = []
    has_bars = isinstance(figure.plot, Forest) or _are_points(figure, frame)
    if has_bars and axes["mean"].log and (frame["low"] <= 0).any():
        told.append("Intervals that reach 0 go on beyond the axis.")
    has_bands = isinstance(figure.plot, Curves | EstimatorCurves) and not has_bars and axes["mean"].log
    if has_bands and (frame["low"] <= 0).any():  # see `style.draw_line`
        told.append("The lower half of a band is left out beside points whose interval reaches 0.")
    is_map = isinstance(figure.plot, HeatMap)
    if any(axes[column].log and (values[column] <= 0).any() for column in axes):
        place = "have the lowest colour" if is_map else "have no place on a logarithmic axis and are not drawn"
        told.append(f"Values of 0 and less {place}.")
    if any(_lie_beyond(values[column], axes[column]) for column in axes):
        told.append(
            f"Values beyond the ends of {'the scale have the colours of these' if is_map else 'an axis are not seen'}."
        )
    ends = [_read_numbers(frame[end]) for end in ("low", "high") if end in frame]
    if "mean" in axes and not is_map and any(_lie_beyond(end, axes["mean"]) for end in ends):
        told.append("Intervals that reach beyond the ends of an axis are cut off there.")
    if not all(np.isfinite(column).all() for column in values.values()):
        told.append("Values that are missing or infinite are not drawn.")
    return told


def _have_places(figure: Figure, frame: pd.DataFrame) -> np.ndarray:
    """[rows]: whether each of a row's values along an axis can be drawn there."""
    axes, places = getattr(figure.plot, "axes", {}), _read_places(figure, frame)
    can = [np.isfinite(values) & ((values > 0) | (not axes[column].log)) for column, values in places.items()]
    return np.all(can, axis=0) if can else np.ones(len(frame), bool)


def _read_places(figure: Figure, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The columns that are drawn along an axis, as numbers."""
    values = {column: _read_numbers(frame[column]) for column in getattr(figure.plot, "axes", {})}
    if isinstance(figure.plot, Curves):  # a row without `x` is a level
        across = values[figure.plot.x]
        values[figure.plot.x] = np.where(np.isnan(across), 1.0, across)
    return values


def _lie_beyond(values: np.ndarray, axis: Axis) -> bool:
    """Whether some are outside of the limits that an axis has been given."""
    low, high = axis.limits or (-np.inf, np.inf)
    return bool(((values < low) | (values > high))[np.isfinite(values)].any())


def _read_numbers(values: pd.Series) -> np.ndarray:
    """A column as numbers, NaN where it has no value; of words, which have a place anyhow, 1."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(float, na_value=np.nan)
    return np.where(values.isna(), np.nan, 1.0)


def save(drawn: Drawn, folder: Path, name: str) -> list[Path]:
    """PNG and PDF, without a date, so that the same table gives the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    drawn.savefig(paths[0])
    drawn.set_layout_engine("none")  # the layout of the first file holds for the second
    drawn.savefig(paths[1], metadata={"CreationDate": None})
    plt.close(drawn)
    return paths
