"""How figures look: colours and lines of estimators and settings, axes with their ticks. Nothing is set on import."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import (
    FixedLocator,
    LogFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from bnlab.harness.reporting.wording import estimator_label, find_look, name_value
from bnlab.names import Colour, EstimatorName, Line

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
SERIES = tuple(_COLOURS[name] for name in ("red", "blue", "green", "pink", "orange", "sky"))
_OTHERS = ("#7A4A21", "#8A8A8A", "#9A9A00")  # brown, grey, olive: of estimators that do not say how they look
# Of the settings of one estimator: how far its colour is mixed with white (or black, if it is light), and a marker.
_SHADES = ((0.0, ""), (0.25, "o"), (0.4, "s"), (0.52, "^"), (0.62, "D"), (0.7, "v"))


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        label: what it shows, with the unit in brackets.
        limits: of the axis; None: those of the data.
        log: logarithmic, for positive values.
        ticks: "values": at those that occur, if they are few.
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
    "epoch": Axis("epoch"),
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

RC: dict[Any, Any] = {
    "figure.dpi": 160,
    "font.size": 10,
    "axes.titlesize": "medium",
    "figure.titlesize": "large",
    "figure.titleweight": "bold",
    "figure.labelsize": "medium",
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.4,
    "axes.titley": 1.0,  # else ticks are measured again, which titles stand above anyway
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.handlelength": 2.8,  # room for two dashes beside a marker
    "pdf.fonttype": 42,
}
"""Matplotlib's settings for all figures: letters can be read on a telephone, where they are as wide as the screen."""


def choose_looks(frame: pd.DataFrame, by: str, x: str = "") -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Name the series of a figure, and choose how each looks.

    Args:
        frame: the rows of all panels.
        by: the column that tells series apart. An estimator has a colour and a line of its own, and a shade and a
            marker for each of its momenta, unless these are across.
        x: the column that is drawn across.

    Returns:
        The rows with a column `series`, the words of the legend for the value of `by`, of which numbers are put in
        order; and `color`, `linestyle` and `marker` of each series.
    """
    if by != "estimator":
        is_number = pd.api.types.is_numeric_dtype(frame[by])
        named = frame.sort_values(by, kind="stable") if is_number else frame
        named = named.assign(series=[name_value(by, value) for value in named[by]])
        cycle = itertools.cycle(itertools.product(("", "o", "s", "^"), SERIES))
        looks = {}
        for name, (marker, colour) in zip(named["series"].unique(), cycle, strict=False):
            looks[name] = {"color": colour, "linestyle": "-", "marker": marker}
        return named, looks

    momenta = pd.Series(np.nan, frame.index)
    if x != "momentum" and "momentum" in frame:
        momenta = frame["momentum"]
    named = frame.assign(series=list(map(estimator_label, frame[by], momenta)))

    looks = {}
    counts: Counter[str] = Counter()  # the series of each kind of estimator so far
    others = itertools.cycle(itertools.product(_LINES.values(), _OTHERS))
    unknown: dict[str, tuple[Any, str]] = {}  # line and colour of kinds that do not say how they look
    for text, name in named[[by, "series"]].drop_duplicates("series").to_numpy():
        kind = EstimatorName.parse(text).base
        look = find_look(kind)
        if look.colour is not None:
            line = _LINES[look.line]
            colour = _COLOURS[look.colour]
        else:
            if kind not in unknown:
                unknown[kind] = next(others)
            line, colour = unknown[kind]

        share, marker = _SHADES[counts[kind] % len(_SHADES)]
        counts[kind] += 1
        rgb = np.array(to_rgb(colour))
        white_or_black = float(rgb.mean() < 0.5)
        mixed = rgb + share * (white_or_black - rgb)
        looks[name] = {"color": to_hex(tuple(mixed)), "linestyle": line, "marker": marker}
    return named, looks


def axis_of(column: str) -> Axis:
    """Choose the axis of a column: `AXES`, else linear under its own name with ticks at its values."""
    return AXES.get(column, Axis(re.sub("[_.]", " ", column), ticks="values"))


def set_axes(ax: Axes, x: Axis, y: Axis, values: pd.Series, words: Sequence[Any] = ()) -> None:
    """Set labels, scales, ticks and limits of both axes; words have places 0, 1, ... across."""
    ax.set(xlabel=x.label, ylabel=y.label)
    scales = ((y, ax.yaxis, ax.set_yscale), (x, ax.xaxis, ax.set_xscale))
    for wanted, axis, set_scale in scales:
        if wanted.linear:
            set_scale("symlog", linthresh=wanted.linear, linscale=0.6)
            sizes = [float(f"{wanted.linear * size:.1g}") for size in (1, 10 / 3, 10, 100 / 3, 100, 1000 / 3)]
            axis.set_major_locator(FixedLocator([*(-size for size in sizes), 0.0, *sizes]))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        else:
            set_scale("log" if wanted.log else "linear")

    occurring = sorted(values.dropna().unique())
    if words:
        ax.set_xticks(range(len(words)), [str(word) for word in words])
    elif x.ticks == "values" and len(occurring) <= 10:
        ax.xaxis.set_major_locator(FixedLocator(occurring))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
    if x.limits:
        ax.set_xlim(*x.limits)
    if y.limits:
        ax.set_ylim(*y.limits)


def write_out_decades(ax: Axes) -> None:
    """Write numbers on logarithmic axes that span less than two powers of ten as 0.5, on others each power of ten."""
    limits = ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
    for axis, (low, high) in limits:
        if not isinstance(axis.get_major_formatter(), LogFormatter):
            continue
        if high >= 100 * low:
            axis.set_major_locator(LogLocator(numticks=10))
            continue
        if high < 5 * low:
            axis.set_major_locator(MaxNLocator(5))
        else:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def thin_labels(ax: Axes, letters: float) -> None:
    """Leave out the numbers below ticks at given values that would run into the one to their left.

    Args:
        ax: the axes, with their final limits and scale.
        letters: how many stand side by side over the width of the axes.
    """
    has_values = isinstance(ax.xaxis.get_major_locator(), FixedLocator)
    if not has_values or not isinstance(ax.xaxis.get_major_formatter(), StrMethodFormatter):
        return

    low, high = ax.get_xlim()
    ticks = [tick for tick in np.sort(ax.get_xticks()) if low <= tick <= high]
    to_shares = ax.transScale + ax.transLimits
    labels = []
    end = -np.inf
    for tick in ticks:
        label = f"{tick:g}"
        share, _ = to_shares.transform((tick, 1.0))
        start = share * letters - len(label) / 2
        if start > end + 1:  # with a gap of a letter
            end = start + len(label)
        else:
            label = ""
        labels.append(label)
    if "" in labels:
        ax.set_xticks(ticks, labels)
