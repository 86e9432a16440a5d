"""How figures look: colours and names of estimators, one place for all. Nothing is set on import."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FixedLocator, LogFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bnlab.harness.errors import UserError

# Okabe & Ito 2008: told apart by colour-blind readers too. One colour and line for an estimator in every figure; a
# family has one colour where it can.
_BLUE, _SKY, _PINK, _ORANGE, _GREEN, _RED = "#0072B2", "#56B4E9", "#CC79A7", "#E69F00", "#009E73", "#D55E00"
_PURPLE, _BLACK, _BROWN, _GREY, _OLIVE = "#6A3D9A", "#000000", "#7A4A21", "#8A8A8A", "#9A9A00"
_SOLID, _DASHED, _DOTTED, _MIXED = "-", (0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))
ESTIMATORS: dict[str, tuple[str, Any]] = {
    "ema": (_BLUE, _SOLID),
    "ema_biased": (_BLUE, _DASHED),
    "ema_pooled": (_BLUE, _DOTTED),
    "ema_std": (_BLUE, _MIXED),
    "ema_debiased": (_SKY, _DASHED),
    "delagged": (_SKY, _MIXED),
    "cumulative": (_PINK, _SOLID),
    "cumulative_pooled": (_PINK, _DASHED),
    "cumulative_weighted": (_PINK, _DOTTED),
    "polynomial": (_PINK, _MIXED),
    "last_batch": (_ORANGE, _SOLID),
    "window": (_ORANGE, _DASHED),
    "fast_then_slow": (_ORANGE, _MIXED),
    "kalman": (_RED, _SOLID),
    "adaptive_gain": (_RED, _DASHED),
    "oracle": (_RED, _DOTTED),
    "predictive": (_PURPLE, _SOLID),
    "precise": (_GREEN, _SOLID),
    "update_bn": (_GREEN, _DASHED),
    "swa": (_GREEN, _DOTTED),
    "exact": (_BLACK, _DASHED),
    "stale": (_SKY, _SOLID),
    "averaged": (_ORANGE, _DOTTED),
    "test_batch": (_SKY, _DOTTED),
    "eval_norm": (_PURPLE, _DASHED),
    "pseudo_samples": (_PURPLE, _DOTTED),
    "example_weighing": (_PURPLE, _MIXED),
}
_OWN = [(colour, line) for line in (_SOLID, _DASHED, _DOTTED, _MIXED) for colour in (_BROWN, _GREY, _OLIVE)]
# Of one estimator's settings: how far its colour is mixed with white (or black, if it is light), and a marker.
_SETTINGS = ((0.0, ""), (0.25, "o"), (0.4, "s"), (0.52, "^"), (0.62, "D"), (0.7, "v"))
NAMES = {
    "ema": "EMA",
    "ema_biased": "EMA, variances not corrected",
    "ema_pooled": "EMA, batches pooled",
    "ema_debiased": "EMA, start divided out",
    "delagged": "EMA, lag subtracted",
    "cumulative": "average of all batches",
    "cumulative_weighted": "average of all images",
    "last_batch": "last batch only",
    "precise": "precise BN",
    "update_bn": "batches averaged (update_bn)",
    "swa": "batches averaged by size (SWA)",
    "stale": "EMA of the trained network",
    "averaged": "average of its buffers",
    "window": "mean of the last {k} batches",
    "polynomial": "average, new batch weighs 1/t^{alpha}",
    "kalman": "Kalman filter",
    "predictive": "predictive momentum",
    "test_batch": "test batch",
    "pseudo_samples": "test batch and pseudo-samples",
    "example_weighing": "example weighing",
    "exact": "exact population",
}
"""Words for legends; what stands in braces are parameters."""
_UNSAID = {"window": {"pooled": "False"}, "kalman": {"per": "layer"}}
"""Parameters that legends leave out where they have this value."""


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        label: what it shows, with the unit in brackets.
        limits: of the axis; None: those of the data.
        log: logarithmic, for positive values.
        ticks: written out: "125" (of each decade of a logarithmic axis) or "values" (that occur, if they are few).
    """

    label: str
    limits: tuple[float, float] | None = None
    log: bool = False
    ticks: str = ""


AXES = {
    "momentum": Axis("momentum (weight of the new batch)", log=True),
    "epoch": Axis("epoch", log=True, ticks="125"),
    "batch_size": Axis("batch size", log=True, ticks="values"),
    "images": Axis("images", log=True, ticks="values"),
    "norm.batch_size": Axis("images that are normalized together", log=True, ticks="values"),
    "weight": Axis("weight of the example's own moments"),
    "step": Axis("step"),
    "steps": Axis("steps of the training", log=True, ticks="values"),
    "depth": Axis("layer, counted from the input", ticks="values"),
    "position": Axis("batches of the epoch"),
    "layer": Axis("layer, counted from the input"),
    "layers": Axis("layers with batch norm", ticks="values"),
    "shortage": Axis("memory needed / memory allowed", log=True, ticks="values"),
    "last": Axis("last batches", log=True, ticks="values"),
    "size": Axis("what is added (σ)", log=True),
    "dose": Axis("error (σ of the mean, log of the variance)", log=True, ticks="values"),
}
"""Columns that are drawn across, by their name."""
_SERIES = (_RED, _BLUE, _GREEN, _PINK, _ORANGE, _SKY)

_ROWS, _TICKS, _RANGE = 40, 10, 500  # the most rows, written ticks, and range of an axis with ticks at 1, 2 and 5

_FEWER = "sweep fewer, under a name=... of its own, or let the figure's score select some"

_RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.8,  # room for two dashes beside a marker
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def paper() -> Iterator[None]:
    """The look of all figures, for the time of the block."""
    with plt.rc_context(_RC):
        yield


# The looks that the figure being drawn has given away: its panels agree in them, also where one lacks a series.
_given: ContextVar[dict[str, dict[Any, Any]] | None] = ContextVar("given", default=None)


@contextlib.contextmanager
def one_figure() -> Iterator[None]:
    """The time of drawing one figure, in which a series keeps its look."""
    before = _given.set({})
    try:
        yield
    finally:
        _given.reset(before)


def _give(kind: str, keys: Sequence[Any], stock: Sequence[Any]) -> list[Any]:
    """Each key's own piece of the stock, the next free one if it is new to the figure; UserError if there is none."""
    figure = _given.get()
    given = ({} if figure is None else figure).setdefault(kind, {})
    for key in keys:
        if key in given:
            continue
        if len(given) == len(stock):
            known = ", ".join(map(str, dict.fromkeys([*given, *keys])))
            raise UserError(f"a figure has room for {len(stock)} {kind}, found {known}; {_FEWER}")
        given[key] = stock[len(given)]
    return [given[key] for key in keys]


def choose_colours(values: Sequence[Any]) -> dict[Any, str]:
    """A colour for each value of something ordered, such as batch sizes; the same in all panels of a figure.

    Raises:
        UserError: there are more values than colours.
    """
    return dict(zip(values, _give("series", values, _SERIES), strict=True))


def choose_rows(ax: Axes, names: Sequence[Any]) -> dict[Any, int]:
    """A place for each name on the axis upwards, the first on top; the same in all panels of a figure.

    Raises:
        UserError: there are more names than can be read.
    """
    rows = dict(zip(names, _give("rows", names, range(_ROWS)), strict=True))
    known = (_given.get() or {}).get("rows", rows)
    size = min(9, 200 / len(known))  # points of 3 inches
    ax.set_yticks(list(known.values()), [str(name) for name in known], fontsize=size)
    ax.set_ylim(len(known) - 0.5, -0.5)
    return rows


def estimator_style(name: object, momentum: Any = math.nan) -> dict[str, Any]:
    """`colour`, `linestyle` and `marker` of an estimator; parameters and momenta differ in shade and marker.

    The same in all panels of a figure.

    Raises:
        UserError: there are more of the user's estimators, or settings of one estimator, than can be told apart.
    """
    base = str(name).partition("(")[0]
    colour, line = ESTIMATORS.get(base) or _give("estimators of your own", [base], _OWN)[0]
    share, marker = _give(f"settings of {base}", [estimator_label(name, momentum)], _SETTINGS)[0]
    rgb = np.array(to_rgb(colour))
    mixed = rgb + share * (float(rgb.mean() < 0.5) - rgb)
    return {"colour": to_hex(mixed), "linestyle": line, "marker": marker}


def estimator_label(name: object, momentum: Any = math.nan) -> str:
    """Words for a legend; parameters kept, but for those that go without saying.

    >>> estimator_label("window(k=20,pooled=False)"), estimator_label("precise(images=2048)")
    ('mean of the last 20 batches', 'precise BN (2,048 images)')
    """
    base, _, rest = str(name).partition("(")
    parameters = dict(re.findall(r"(\w+)=(\([^()]*\)|[^,]*)", rest.removesuffix(")")))
    words, unsaid = NAMES.get(base, base), _UNSAID.get(base, {})
    for key in [key for key in parameters if f"{{{key}}}" in words]:
        words = words.replace(f"{{{key}}}", parameters.pop(key))
    kept = [
        f"{int(value):,} images" if key == "images" and value.isdecimal() else f"{key}={value}"
        for key, value in parameters.items()
        if unsaid.get(key) != value
    ]
    kept += [] if math.isnan(momentum) else [f"momentum {momentum:g}"]
    words = re.sub(" *{.*?}", "", words)
    return f"{words} ({', '.join(kept)})" if kept else words


def interval_lengths(frame: pd.DataFrame) -> np.ndarray:
    """[2, rows]: how far `low` is below the mean, and `high` above it, as matplotlib's error bars take them."""
    return (frame[["low", "high"]].to_numpy() - frame[["mean"]].to_numpy()).T * [[-1], [1]]


def require_one_row(frame: pd.DataFrame, x: str, label: str | None) -> None:
    """ValueError where a line would go up and down between several rows at one `x`."""
    doubled = frame[x].duplicated()
    if doubled.any():
        raise ValueError(
            f"{label or 'a line'} has several rows at {x} {frame[x][doubled].iloc[0]}; average or select them"
        )


def draw_line(
    ax: Axes, frame: pd.DataFrame, x: str, colour: str, label: str | None = None, *, log: bool = False, **style: Any
) -> None:
    """Mean over seeds with its interval as a band; the frame has `mean`, `low`, `high`.

    On a logarithmic axis, which is to be said, the lower half of an interval that reaches 0 is left out: it has no end;
    a mean of 0 interrupts the line.

    Raises:
        ValueError: there are several rows at one `x`, or one without it, which would not be drawn.
    """
    if frame[x].isna().any():
        raise ValueError(f"{label}: a row has no {x}; select those that have one")
    require_one_row(frame, x, label)
    ordered = frame.sort_values(x, kind="stable") if pd.api.types.is_numeric_dtype(frame[x]) else frame
    if len(ordered) == 1:  # a line would not be seen
        marker = style.get("marker") or "o"
        ax.errorbar(ordered[x], ordered["mean"], interval_lengths(ordered), fmt=marker, color=colour, label=label)
        return
    if log:
        ordered = ordered.assign(mean=ordered["mean"].where(ordered["mean"] > 0))
    alone = find_alone(ordered["mean"])
    every: int | list[bool] = max(1, len(ordered) // 10)
    if alone.any():
        marked = (np.arange(len(ordered)) % every == 0) & bool(style.get("marker"))
        style, every = {**style, "marker": style.get("marker") or "o"}, list(marked | alone)
    ax.plot(ordered[x], ordered["mean"], color=colour, label=label, markevery=every, **style)
    if ordered["low"].notna().any():
        has_end = (ordered["low"] > 0) | (not log)
        halves = [("low", "high", None)] if has_end.all() else [("mean", "high", None), ("low", "mean", has_end)]
        for low, high, where in halves:
            ax.fill_between(ordered[x], ordered[low], ordered[high], where, color=colour, alpha=0.15, linewidth=0)


def find_alone(values: pd.Series) -> np.ndarray:
    """[rows]: whether a value stands between others that are missing, so that no line goes there."""
    seen = np.isfinite(values.to_numpy())
    return seen & ~np.append(False, seen[:-1]) & ~np.append(seen[1:], False)


def axis_of(column: str) -> Axis:
    """How a column is drawn: `AXES`, else linear under its own name with ticks at its values."""
    return AXES.get(column, Axis(re.sub("[_.]", " ", column), ticks="values"))


def set_axes(ax: Axes, x: Axis, y: Axis, values: pd.Series) -> None:
    """Labels, scales and limits of both axes; a single positive value across has room on both sides."""
    is_log = x.log and pd.api.types.is_numeric_dtype(values)  # words have places of their own
    if is_log and values.nunique() == 1 and values.iloc[0] > 0:
        ax.set_xlim(values.iloc[0] / 2, values.iloc[0] * 2)
    ax.set(xlabel=x.label, ylabel=y.label)
    for wanted, set_scale in ((is_log, ax.set_xscale), (y.log, ax.set_yscale)):
        if wanted:  # to set a linear one again would take the words off an axis that has some
            set_scale("log")
    crowded = x.ticks == "values" and (values.nunique() > _TICKS or not pd.api.types.is_numeric_dtype(values))
    if x.ticks and not crowded:
        wide = x.log and values.max() > _RANGE * values.min()  # room for the powers of ten only
        decades = LogLocator(subs=(1,) if wide else (1, 2, 5))
        at = decades if x.ticks == "125" else FixedLocator(sorted(values.unique()))
        ax.xaxis.set_major_locator(at)
        if x.ticks == "values":
            ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    elif x.ticks and pd.api.types.is_numeric_dtype(values) and not x.log and (values % 1 == 0).all():
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if x.limits:
        ax.set_xlim(*x.limits)
    if y.limits:
        ax.set_ylim(*y.limits)


def write_out_decades(ax: Axes) -> None:
    """Have numbers on logarithmic axes that span less than two powers of ten, as 0.5 and not 5 × 10⁻¹."""
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if isinstance(axis.get_major_formatter(), LogFormatter) and high < 100 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.2, 1.5, 2, 3, 4, 5, 7)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
