"""How figures look: colours and lines of estimators and settings, axes with their ticks. Nothing is set on import."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
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

from bnlab.common.names import Colour, EstimatorName, Line
from bnlab.harness.reporting.wording import estimator_label, find_look, name_setting, name_value

# Okabe & Ito 2008: told apart by colour-blind readers too. One colour and line for an estimator in every figure; a
# family has one colour where it can. Momenta have others, see `find_colour`.
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
_MARKERS = ("", "o", "s", "^")
_OTHERS = ("#7A4A21", "#8A8A8A", "#9A9A00")  # brown, grey, olive: of estimators that do not say how they look
# Of the parameters of one estimator: how far its colour is mixed with white (or black, if it is light), and a marker.
_SHADES = ((0.0, ""), (0.25, "o"), (0.4, "s"), (0.52, "^"), (0.62, "D"), (0.7, "v"))

# Places of momenta between the darkest colour and the lightest: the widest steps are around 0.1, where most curves are.
_PLACES = {0.001: 0.0, 0.01: 0.23, 0.05: 0.38, 0.1: 0.54, 0.2: 0.71, 0.5: 0.86, 0.9: 0.96, 1.0: 1.0}


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
    "momentum": Axis("momentum (weight of the new batch)", log=True, ticks="values"),
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

_TICKS = 20  # the most that stand at values

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
    # TrueType. Many journals refuse Type 3, which is matplotlib's default.
    "pdf.fonttype": 42,
    "svg.hashsalt": "bnlab",  # else names in the file are drawn by chance
}
"""Matplotlib's settings for all figures: letters can be read on a telephone, where they are as wide as the screen."""


def choose_looks(frame: pd.DataFrame, by: str, x: str = "") -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Name the series of a figure, and choose how each looks.

    Args:
        frame: the rows of all panels.
        by: the column that tells series apart. A momentum has one colour in every figure; lines and markers tell the
            estimators apart that have it. An estimator without a momentum, or with all of them across, has a colour.
        x: the column that is drawn across.

    Returns:
        The rows with a column `series`, the words of the legend for the value of `by`, of which numbers are put in
        order; and `color`, `linestyle` and `marker` of each series.
    """
    if by == "estimator":
        momenta = pd.Series(np.nan, frame.index)
        # Where momenta are across, an estimator is one line for all of them.
        if x != "momentum" and "momentum" in frame:
            momenta = frame["momentum"].astype(float)
        named = frame.assign(series=list(map(estimator_label, frame[by], momenta)), weight=momenta)
        series = named[[by, "weight", "series"]].drop_duplicates("series")
        return named.drop(columns="weight"), _choose_looks_of_estimators(series)

    is_number = pd.api.types.is_numeric_dtype(frame[by])
    named = frame.sort_values(by, kind="stable") if is_number else frame
    named = named.assign(series=[name_value(by, value) for value in named[by]])
    looks = {}
    if by == "momentum":
        for momentum, name in named[[by, "series"]].drop_duplicates().to_numpy():
            looks[name] = {"color": find_colour(momentum), "linestyle": "-", "marker": ""}
        return named, looks

    cycle = itertools.cycle(itertools.product(_MARKERS, SERIES))
    for name, (marker, colour) in zip(named["series"].unique(), cycle, strict=False):
        looks[name] = {"color": colour, "linestyle": "-", "marker": marker}
    return named, looks


def find_colour(momentum: float) -> str:
    """Find the colour of a momentum, the same in every figure: the smaller, the darker.

    >>> find_colour(0.001), find_colour(0.1), find_colour(1.0)
    ('#440154', '#228d8d', '#bddf26')
    """
    place = np.interp(np.log(momentum), np.log([*_PLACES]), [*_PLACES.values()])
    return to_hex(colormaps["viridis"](0.9 * place))  # beyond, it is too light on white


def _choose_looks_of_estimators(series: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Choose the looks of series with the columns estimator, weight (the momentum, or NaN) and series."""
    looks = {}
    counts: Counter[str] = Counter()  # the series of each kind of estimator so far
    others = itertools.cycle(itertools.product(_LINES.values(), _OTHERS))
    unknown: dict[str, tuple[Any, str]] = {}  # line and colour of kinds that do not say how they look
    lines: dict[str, tuple[str, Any]] = {}  # marker and line of estimators whose momenta have colours
    for text, momentum, name in series.to_numpy():
        kind = EstimatorName.parse(text).base
        look = find_look(kind)
        if not np.isnan(momentum):
            if text not in lines:
                lines[text] = _choose_line(_LINES[look.line], [*lines.values()])
            marker, line = lines[text]
            looks[name] = {"color": find_colour(momentum), "linestyle": line, "marker": marker}
            continue

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
    return looks


def _choose_line(wanted: Any, taken: Sequence[tuple[str, Any]]) -> tuple[str, Any]:
    """Choose the marker and the line of a further estimator: others of one colour may lie exactly below it."""
    marker = _MARKERS[len(taken) % len(_MARKERS)]
    free = [line for line in (wanted, *_LINES.values()) if (marker, line) not in taken]
    return marker, (free[0] if free else wanted)


def axis_of(column: str, values: pd.Series) -> Axis:
    """Choose the axis of a column: `AXES`, else its own name, with ticks at its values.

    The latter is logarithmic unless a value is below 0. Steps and epochs are on a logarithmic axis where they were
    measured at equal ratios, as by `evaluate_at=log`. Where 0 is among the values, see `include_zero`.
    """
    if not pd.api.types.is_numeric_dtype(values):
        return AXES.get(column, Axis(name_setting(column)))
    axis = AXES.get(column, Axis(name_setting(column), log=bool(values.min() >= 0), ticks="values"))
    if column in ("epoch", "step") and _are_spaced_by_ratios(values):
        axis = replace(axis, log=True)
    return include_zero(axis, values)


def include_zero(axis: Axis, values: pd.Series) -> Axis:
    """Give a logarithmic axis a place for 0, if that is among the values: it is linear up to the smallest other one."""
    if not axis.log or not (values <= 0).any():
        return axis
    positive = values[values > 0]
    if positive.empty:
        return replace(axis, log=False)

    # Margins that matplotlib chooses are those of the linear axis that it draws on at first.
    smallest = float(positive.min())
    reach = (1.1 * values.min() - 0.1 * smallest, 1.1 * values.max())
    return replace(axis, log=False, linear=smallest, limits=axis.limits or reach)


def _are_spaced_by_ratios(values: pd.Series) -> bool:
    """Find out if numbers are at equal ratios, nearly, rather than at equal distances, over a power of ten or more."""
    numbers = np.sort(values.dropna().unique())
    # Three places do not tell a spacing.
    if len(numbers) < 4 or numbers[0] <= 0 or numbers[-1] < 10 * numbers[0]:
        return False
    places = np.arange(len(numbers))
    of_distances = np.corrcoef(places, numbers)[0, 1]
    of_ratios = np.corrcoef(places, np.log(numbers))[0, 1]
    return bool(of_ratios > max(of_distances, 0.98))


def set_axes(ax: Axes, x: Axis, y: Axis, values: pd.Series, words: Sequence[Any] = ()) -> None:
    """Set labels, scales, ticks and limits of both axes; words have places 0, 1, ... across."""
    ax.set(xlabel=x.label, ylabel=y.label)
    scales = ((y, ax.yaxis, ax.set_yscale), (x, ax.xaxis, ax.set_xscale))
    # Scales come before ticks, because setting a scale gives an axis new locators and formatters.
    for wanted, axis, set_scale in scales:
        if wanted.linear:
            set_scale("symlog", linthresh=wanted.linear, linscale=0.6)
            # Ticks are half a power of ten apart, from where the linear part ends, and have one digit each.
            sizes = [float(f"{wanted.linear * size:.1g}") for size in (1, 10 / 3, 10, 100 / 3, 100, 1000 / 3)]
            axis.set_major_locator(FixedLocator([*(-size for size in sizes), 0.0, *sizes]))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        else:
            set_scale("log" if wanted.log else "linear")

    occurring = sorted(values.dropna().unique())
    if words:
        ax.set_xticks(range(len(words)), [str(word) for word in words])
    elif x.ticks == "values" and len(occurring) <= _TICKS:
        ax.xaxis.set_major_locator(FixedLocator(occurring))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
    if x.limits:
        ax.set_xlim(*x.limits)
    if y.limits:
        ax.set_ylim(*y.limits)


def write_out_decades(ax: Axes) -> None:
    """Write numbers on logarithmic axes that span less than two powers of ten as 0.5, on others each power of ten.

    Powers of ten are written out where none has many zeros.
    """
    limits = ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
    for axis, (low, high) in limits:
        # All others are linear, show names, or have their ticks at values.
        if not isinstance(axis.get_major_formatter(), LogFormatter):
            continue
        if high >= 100 * low:
            axis.set_major_locator(LogLocator(numticks=10))
            if low > 5e-4 and high < 2e4:
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            continue
        # So short an axis may have only one of the numbers 1, 2 and 5 times a power of ten.
        if high < 5 * low:
            axis.set_major_locator(MaxNLocator(5))
        else:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def thin_labels(ax: Axes, letters: float) -> None:
    """Leave out the numbers below ticks, at values or logarithmic, that would run into others.

    Of two the power of ten stays, else the left one.

    Args:
        ax: the axes, with their final limits and scale.
        letters: how many stand side by side over the width of the axes.
    """
    is_crowded = isinstance(ax.xaxis.get_major_locator(), FixedLocator | LogLocator)
    if not is_crowded or not isinstance(ax.xaxis.get_major_formatter(), StrMethodFormatter):
        return

    low, high = ax.get_xlim()
    ticks = [tick for tick in np.sort(ax.get_xticks()) if low <= tick <= high]
    to_shares = ax.transScale + ax.transLimits
    is_log = ax.get_xscale() == "log"
    taken: list[tuple[float, float]] = []
    labels = {}
    # Powers of ten are first to take their room; in this notation they alone have the mantissa 1.
    for tick in sorted(ticks, key=lambda tick: not (is_log and f"{tick:e}".startswith("1.000000e"))):
        label = f"{tick:g}"
        # Only the horizontal place counts; 1 is a height that a logarithmic axis has, too.
        share, _ = to_shares.transform((tick, 1.0))
        start = share * letters - len(label) / 2
        end = start + len(label)
        is_free = all(end + 1 <= other_start or start >= other_end + 1 for other_start, other_end in taken)
        labels[tick] = label if is_free else ""
        if is_free:
            taken.append((start, end))
    if "" in labels.values():
        ax.set_xticks(ticks, [labels[tick] for tick in ticks])
