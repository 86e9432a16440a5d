"""How figures look: colours and names of estimators and settings, axes. Nothing is set on import."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import (
    FixedLocator,
    Locator,
    LogFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from bnlab.harness.reporting.frames.selection import name_value
from bnlab.names import Colour, EstimatorName, Line, Look

# Okabe & Ito 2008: told apart by colour-blind readers too. One colour and line for an estimator in every figure; a
# family has one colour where it can.
_COLOURS: dict[Colour, str] = {
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "pink": "#CC79A7",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#6A3D9A",
    "black": "#000000",
}
_LINES: dict[Line, Any] = {
    "solid": "-",
    "dashed": (0, (4, 2)),
    "dotted": (0, (1, 1.2)),
    "mixed": (0, (5, 1.5, 1, 1.5)),
}
_OTHERS = ("#7A4A21", "#8A8A8A", "#9A9A00")  # brown, grey, olive: of estimators that do not say how they look
_OWN = [(colour, line) for line in _LINES.values() for colour in _OTHERS]
# Of the settings of one estimator: how far its colour is mixed with white (or black, if it is light), and a marker.
_SHADES = ((0.0, ""), (0.25, "o"), (0.4, "s"), (0.52, "^"), (0.62, "D"), (0.7, "v"))
SERIES = tuple(_COLOURS[name] for name in ("red", "blue", "green", "pink", "orange", "sky"))
_MARKERS = ("", "o", "s", "^")  # of further series


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        label: what it shows, with the unit in brackets.
        limits: of the axis; None: those of the data.
        log: logarithmic, for positive values.
        ticks: written out: "125" (round numbers, of a logarithmic axis 1, 2 and 5 of each decade) or "values" (that
            occur, if they are few).
        linear: for values of both signs and very different sizes: linear up to this one on both sides of 0,
            logarithmic beyond; 0: the axis is as `log` says.
    """

    label: str
    limits: tuple[float, float] | None = None
    log: bool = False
    ticks: str = ""
    linear: float = 0.0


AXES = {
    "momentum": Axis("momentum (weight of the new batch)", log=True),
    "epoch": Axis("epoch", ticks="125"),
    "batch_size": Axis("batch size", log=True, ticks="values"),
    "images": Axis("images", log=True, ticks="values"),
    "norm.batch_size": Axis("images that are normalized together", log=True, ticks="values"),
    "step": Axis("step"),
    "steps": Axis("steps of the training", log=True, ticks="values"),
    "depth": Axis("layer, counted from the input", ticks="values"),
    "position": Axis("batches of the epoch"),
    "layers": Axis("layers with batch norm", ticks="values"),
    "shortage": Axis("memory needed / memory allowed", log=True, ticks="values"),
    "size": Axis("what is added (σ)", log=True),
    "dose": Axis("error (σ of the mean, log of the variance)", log=True, ticks="values"),
}
"""Columns that are drawn across, by their name."""

_TICKS = 10  # the most that are written
_RANGE = 300  # of an axis with ticks at 1, 2 and 5
_DECADES = 4  # with ticks, of an axis that is linear around 0
_NARROW = 1.3  # a range of a logarithmic axis that is divided as a linear one

PIXELS = 160
"""In an inch of a figure's PNG."""


@dataclass(frozen=True)
class Format:
    """Sizes of figures for one kind of page: lengths in inches, letters in points.

    Attributes:
        narrow: the width of a figure with one panel across.
        wide: that of one with several, or with names beside its panel.
        tall: the height of a panel that is alone across.
        low: that of one among several.
        letters: the size of labels; others are in proportion.
        line: the width of lines, in points.
        has_title: the title stands above the panels; a paper has it in its caption.
    """

    narrow: float
    wide: float
    tall: float
    low: float
    letters: float
    line: float
    has_title: bool


PAGE = Format(narrow=4.2, wide=5.4, tall=3.2, low=2.35, letters=10.0, line=1.6, has_title=True)
"""For a web page: letters can be read on a telephone, where the figure is as wide as the screen."""
PAPER = Format(narrow=3.35, wide=6.9, tall=2.2, low=1.9, letters=7.5, line=1.1, has_title=False)
"""For a paper with two columns: as wide as one of them, or as both."""

_RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": PIXELS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titley": 1.0,  # else ticks are measured again, which titles stand above anyway
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.handlelength": 2.8,  # room for two dashes beside a marker
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def made_for(form: Format) -> Iterator[None]:
    """Give all figures the look that they have in a format, for the time of the block."""
    sizes: dict[Any, Any] = {
        "font.size": form.letters,
        "axes.titlesize": form.letters,
        "axes.labelsize": form.letters,
        "xtick.labelsize": 0.95 * form.letters,
        "ytick.labelsize": 0.95 * form.letters,
        "legend.fontsize": 0.95 * form.letters,
        "lines.linewidth": form.line,
        "lines.markersize": 3.4 * form.line,
    }
    with plt.rc_context({**_RC, **sizes}):
        yield


def name_series(frame: pd.DataFrame, by: str, x: str = "") -> pd.DataFrame:
    """Add a column `series`: the words of the legend for the value of `by`; numbers are put in order.

    An estimator has a series for each momentum, unless momenta are the column `x`, which is drawn across.
    """
    if by == "estimator":
        momenta = pd.Series(np.nan, frame.index)
        if x != "momentum":
            momenta = frame.get("momentum", momenta)
        pairs = zip(frame[by], momenta, strict=True)
        return frame.assign(series=[estimator_label(*pair) for pair in pairs])

    ordered = frame
    if pd.api.types.is_numeric_dtype(frame[by]):
        ordered = frame.sort_values(by, kind="stable")
    return ordered.assign(series=[name_value(by, value) for value in ordered[by]])


def choose_looks(frame: pd.DataFrame, by: str) -> dict[str, dict[str, Any]]:
    """Choose `color`, `linestyle` and `marker` of each series. An estimator has its own; settings of one, shades of it.

    Args:
        frame: the rows of all panels of a figure, see `name_series`.
        by: the column that tells series apart.
    """
    series = frame[[by, "series"]].drop_duplicates("series")
    if by == "estimator":
        return _choose_looks_of_estimators(series)

    looks = {}
    for place, name in enumerate(series["series"]):
        cycle, place_in_cycle = divmod(place, len(SERIES))
        marker = _MARKERS[cycle % len(_MARKERS)]
        looks[name] = {"color": SERIES[place_in_cycle], "linestyle": "-", "marker": marker}
    return looks


def _choose_looks_of_estimators(series: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Choose the looks of series by their estimators: one with several settings has a shade and a marker for each."""
    looks = {}
    counts: Counter[str] = Counter()  # the series of each kind of estimator so far
    unknown: list[str] = []  # kinds that do not say how they look
    for text, name in series.to_numpy():
        kind = EstimatorName.parse(text).base
        look = find_look(kind)
        if look.colour is None:
            if kind not in unknown:
                unknown.append(kind)
            colour, line = _OWN[unknown.index(kind) % len(_OWN)]
        else:
            colour = _COLOURS[look.colour]
            line = _LINES[look.line]

        share, marker = _SHADES[counts[kind] % len(_SHADES)]
        counts[kind] += 1
        looks[name] = {"color": _mix(colour, share), "linestyle": line, "marker": marker}
    return looks


def _mix(colour: str, share: float) -> str:
    """Mix a colour with a share of white, or of black if it is light."""
    rgb = np.array(to_rgb(colour))
    other = float(rgb.mean() < 0.5)
    mixed = rgb + share * (other - rgb)
    return to_hex(tuple(mixed))


def estimator_label(name: object, momentum: Any = math.nan) -> str:
    """Name an estimator in a legend, with its parameters but for those that go without saying.

    >>> estimator_label("window(k=20,pooled=False)"), estimator_label("precise(images=2048)")
    ('mean of the last batches (k=20)', 'precise BN (2,048 images)')
    """
    parsed = EstimatorName.parse(str(name))
    look = find_look(parsed.base)
    words = []
    for key, value in parsed.parameters.items():
        if f"{key}={value}" not in look.unsaid:
            words.append(_say_parameter(key, value))
    if not math.isnan(momentum):
        words.append(f"momentum {momentum:g}")

    label = look.words or parsed.base
    return f"{label} ({', '.join(words)})" if words else label


def find_look(kind: str) -> Look:
    """Find how an estimator looks by its name without parameters; one that is not known here has none of its own."""
    from bnlab.harness.statistic_kinds import list_looks  # with torch, for which reading tables does not wait

    return list_looks().get(kind, Look())


def _say_parameter(key: str, value: str) -> str:
    """Say a parameter of an estimator: a number of images in words, and what images these are."""
    if key == "statistics_split":
        return value
    if key == "images" and value.isdecimal():
        return f"{int(value):,} images"
    return f"{key}={value}"


def axis_of(column: str) -> Axis:
    """Choose the axis of a column: `AXES`, else linear under its own name with ticks at its values."""
    return AXES.get(column, Axis(re.sub("[_.]", " ", column), ticks="values"))


def set_axes(ax: Axes, x: Axis, y: Axis, values: pd.Series, words: Sequence[Any] = ()) -> None:
    """Set labels, scales, ticks and limits of both axes; words have places 0, 1, ... across."""
    ax.set(xlabel=x.label, ylabel=y.label)
    _set_scale(ax.yaxis, y)
    if words:
        ax.set_xticks(range(len(words)), [str(word) for word in words])
    else:
        _set_scale(ax.xaxis, x)
        _set_ticks(ax, x, values.dropna())
    if x.limits:
        ax.set_xlim(*x.limits)
    if y.limits:
        ax.set_ylim(*y.limits)


def _set_scale(axis: XAxis | YAxis, wanted: Axis) -> None:
    """Make an axis linear, logarithmic, or linear around 0 and logarithmic beyond, with two ticks in each decade."""
    set_scale = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
    if not wanted.linear:
        set_scale("log" if wanted.log else "linear")
        return

    set_scale("symlog", linthresh=wanted.linear, linscale=0.6)
    sizes = [wanted.linear * factor * 10**decade for decade in range(_DECADES) for factor in (1.0, 10 / 3)]
    rounded = [float(f"{size:.1g}") for size in sizes]
    axis.set_major_locator(FixedLocator([*[-size for size in rounded], 0.0, *rounded]))
    axis.set_minor_locator(NullLocator())
    _write_in_full(axis)


def _set_ticks(ax: Axes, x: Axis, values: pd.Series) -> None:
    """Write numbers in full at the values that occur, or at 1, 2 and 5 of each power of ten; see `Axis.ticks`."""
    if not x.ticks:
        return

    axis = ax.xaxis
    if x.ticks == "values" and values.nunique() <= _TICKS:
        axis.set_major_locator(FixedLocator(sorted(values.unique())))
        axis.set_minor_locator(NullLocator())
    elif x.log:
        is_wide = values.max() > _RANGE * values.min()
        axis.set_major_locator(LogLocator(subs=(1,) if is_wide else (1, 2, 5)))
    elif (values % 1 == 0).all():
        axis.set_major_locator(MaxNLocator(integer=True))
    _write_in_full(axis)


def _write_in_full(axis: XAxis | YAxis) -> None:
    """Have the numbers of an axis written as 0.5, and none between its major ticks."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def write_out_decades(ax: Axes) -> None:
    """Write numbers on logarithmic axes that span less than two powers of ten as 0.5, on others each power of ten."""
    limits = ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
    for axis, (low, high) in limits:
        is_logarithmic = isinstance(axis.get_major_formatter(), LogFormatter)
        if is_logarithmic and high < 100 * low:
            axis.set_major_locator(_choose_locator(high / low))
            _write_in_full(axis)
        elif is_logarithmic:
            axis.set_major_locator(LogLocator(numticks=_TICKS))


def _choose_locator(ratio: float) -> Locator:
    """Choose where ticks are on a logarithmic axis, by the ratio of its ends."""
    if ratio <= _NARROW:
        return MaxNLocator(4)
    if ratio <= 5:
        return LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 7))
    return LogLocator(subs=(1, 2, 5))
