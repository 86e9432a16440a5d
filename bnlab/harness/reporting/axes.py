"""Axes of panels: those of columns by their name, scales, and ticks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis as DrawnAxis
from matplotlib.ticker import FixedLocator, Locator, LogLocator, MaxNLocator, NullLocator

from bnlab.harness.reporting.wording import name_setting


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        label: what it shows, with the unit in brackets.
        limits: of the axis; None: those of the data.
        log: logarithmic, for positive values.
        ticks: "values": at those that occur, or at some of them.
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
}
"""Columns that are drawn across, by their name."""

_NUMBER = 0.3  # inches that a number takes across, with the gap beside it
_MANY = 10  # numbers that an axis of any figure has at most


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
    """Make a logarithmic axis linear between 0 and the smallest positive value, if 0 is among the values."""
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


def set_axes(ax: Axes, x: Axis, y: Axis, values: pd.Series, words: Sequence[str] = ()) -> None:
    """Set labels, scales, ticks and limits of both axes, on which all is drawn; words have places 0, 1, ... across."""
    ax.set(xlabel=x.label, ylabel=y.label)
    if x.limits:
        ax.set_xlim(*x.limits)
    if y.limits:
        ax.set_ylim(*y.limits)
    # How many numbers fit side by side, by the width that panels have before words take some of it.
    numbers = int(np.clip(ax.bbox.width / ax.figure.dpi / _NUMBER, 2, _MANY))
    upward = (y, ax.yaxis, ax.set_yscale, ax.get_ylim)
    across = (x, ax.xaxis, ax.set_xscale, ax.get_xlim)
    # Scales come before ticks, because setting a scale gives an axis new locators and formatters.
    for wanted, axis, set_scale, get_limits in (upward, across):
        if wanted.linear:
            set_scale("symlog", linthresh=wanted.linear, linscale=0.6)
            # Ticks are half a power of ten apart, or a whole one where panels stand side by side.
            factors = (1, 10, 100) if wanted is x and numbers < _MANY else (1, 10 / 3, 10, 100 / 3, 100, 1000 / 3)
            sizes = [float(f"{wanted.linear * factor:.1g}") for factor in factors]
            _set_ticks(axis, FixedLocator([*(-size for size in sizes), 0.0, *sizes]))
        elif wanted.log:
            set_scale("log")
            _set_ticks(axis, _choose_locator(*get_limits(), numbers if wanted is x else _MANY))

    occurring = sorted(values.dropna().unique())
    if words:
        ax.set_xticks(range(len(words)), [textwrap.fill(word, 10) for word in words])
    elif x.ticks == "values" and occurring:
        _set_ticks(ax.xaxis, FixedLocator(occurring, nbins=numbers))


def _set_ticks(axis: DrawnAxis, locator: Locator) -> None:
    """Write numbers at these ticks as 0.01, and draw no others: one without its number would have to be counted."""
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _choose_locator(low: float, high: float, numbers: int) -> Locator:
    """Choose ticks of a logarithmic axis: powers of ten, and between them more on a short one, as it has room."""
    if high >= 100 * low:
        return LogLocator(numticks=numbers)
    if high >= 5 * low:
        has_room = 5 * np.log10(high / low) <= numbers
        return LogLocator(subs=(1, 2, 5) if has_room else (1, 3))
    # It may have only one of these numbers.
    return MaxNLocator(5)
