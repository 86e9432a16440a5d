"""How figures look: a colour and a line for each kind of statistics, in all figures. Nothing is set on import.

A series is known by its words. Where these begin with those of a kind of statistics, as in "running averages" or
"exact statistics of 32 images", it has the colour and the line of that kind, and nothing else has its colour. Numbers
have a scale each, the smaller the darker. All other words take a colour that no kind has.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb

from bnlab.harness.reporting.statistic_looks import LOOKS, Colour, Line, Look
from bnlab.harness.reporting.wording import estimator_label, name_value

# Okabe & Ito 2008: told apart by colour-blind readers too. A family of statistics has one colour where it can.
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
# Paul Tol's muted colours, and brown: of what is no kind of statistics.
_OTHERS = ("#882255", "#44AA99", "#999933", "#CC6677", "#332288", "#7A4A21")
MARKERS = "os^DvP"
GREYS = ("#4d4d4d", "#8c8c8c", "#b3b3b3")
"""Of numbers that a paper prints."""
MARK: dict[str, Any] = {"color": "#999999", "linewidth": 0.9, "linestyle": ":"}
"""Of a line at a value that has a name."""
LEVEL: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
"""Of a level beside the line of its series."""

# How far the colour of a kind is mixed with white (or black, if it is light), and a marker, for each further series.
_SHADES = ((0.0, ""), (0.25, "o"), (0.4, "s"), (0.52, "^"), (0.62, "D"), (0.7, "v"))
# Places of momenta between the darkest colour and the lightest: the widest steps are around 0.1, where most curves are.
_PLACES = {0.001: 0.0, 0.01: 0.23, 0.05: 0.38, 0.1: 0.54, 0.2: 0.71, 0.5: 0.86, 0.9: 0.96, 1.0: 1.0}

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


OWN_COLOUR = "own colour"
"""A column of colours that somebody has asked for, in place of those that are chosen."""


def choose_looks(frame: pd.DataFrame, by: str, x: str = "") -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Name the series of a figure, and choose how each looks.

    Args:
        frame: the rows of all panels.
        by: the column that tells series apart. Where estimators are drawn with several momenta, colours tell momenta
            apart, and lines and markers the estimators.
        x: the column that is drawn across.

    Returns:
        The rows with a column `series`, the words of the legend for the value of `by`, of which numbers are put in
        order; and `color`, `linestyle` and `marker` of each series.
    """
    is_number = pd.api.types.is_numeric_dtype(frame[by])
    named = frame.sort_values(by, kind="stable") if is_number else frame
    momenta = pd.Series(np.nan, named.index)
    if by != "estimator":
        names = [name_value(by, value) for value in named[by]]
    else:
        # Where momenta are across, an estimator is one line for all of them.
        if x != "momentum" and "momentum" in named:
            momenta = named["momentum"].astype(float)
        names = list(map(estimator_label, named[by], momenta))
    named = named.assign(series=names)

    if is_number:
        looks = _choose_looks_of_numbers(by, dict(zip(names, named[by], strict=True)))
    elif momenta.nunique() > 1:
        looks = _choose_looks_of_momenta(dict(zip(names, momenta, strict=True)))
    else:
        looks = choose_looks_of_words(dict.fromkeys(names))
    if OWN_COLOUR in named:
        for name, colour in named[["series", OWN_COLOUR]].dropna().to_numpy():
            looks[name] |= {"color": colour}
    return named, looks


def find_kind(words: str) -> Look | None:
    """Find the kind of statistics that words begin with, by its look; None if they name none.

    >>> find_kind("running averages").colour, find_kind("exact statistics of 32 images").colour, find_kind("sorted")
    ('blue', 'black', None)
    """
    # "running averages" are those of several networks, and of one kind with a running average.
    singular = words.replace("averages", "average")
    kinds = [look for look in LOOKS.values() if singular.startswith(look.words)]
    return max(kinds, key=lambda look: len(look.words), default=None)


def find_colour(momentum: float) -> str:
    """Find the colour of a momentum, the same in every figure: the smaller, the darker.

    >>> find_colour(0.001), find_colour(0.1), find_colour(1.0)
    ('#440154', '#228d8d', '#bddf26')
    """
    place = np.interp(np.log(momentum), np.log([*_PLACES]), [*_PLACES.values()])
    return to_hex(colormaps["viridis"](0.9 * place))  # beyond, it is too light on white


def choose_looks_of_words(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose the looks of series by their words: those of kinds of statistics, and for others colours in turn."""
    looks = {}
    counts: Counter[str] = Counter()  # the series of each kind so far
    others = itertools.cycle(itertools.product(_LINES.values(), _OTHERS))
    for name in names:
        kind = find_kind(name)
        if kind is None:
            line, colour = next(others)
            looks[name] = {"color": colour, "linestyle": line, "marker": ""}
            continue
        share, marker = _SHADES[counts[kind.words] % len(_SHADES)]
        counts[kind.words] += 1
        colour = _mix(_COLOURS[kind.colour], share)
        looks[name] = {"color": colour, "linestyle": _LINES[kind.line], "marker": marker}
    return looks


def _mix(colour: str, share: float) -> str:
    """Mix a dark colour with white and a light one with black."""
    rgb = np.array(to_rgb(colour))
    white_or_black = float(rgb.mean() < 0.5)
    mixed = rgb + share * (white_or_black - rgb)
    return to_hex(tuple(mixed))


def _choose_looks_of_numbers(by: str, numbers: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Choose colours from a scale: a momentum and a batch size have one in all figures, other numbers in this one."""
    places = dict(zip(numbers, np.linspace(0, 1, len(numbers)), strict=True))
    if by == "batch_size":
        # From 2 to 1,024, by their logarithm.
        places = {name: np.clip((np.log2(size) - 1) / 9, 0, 1) for name, size in numbers.items()}
    looks = {}
    for name, number in numbers.items():
        # Beyond 0.85, it is too light on white.
        colour = find_colour(number) if by == "momentum" else to_hex(colormaps["plasma"](0.85 * places[name]))
        looks[name] = {"color": colour, "linestyle": "-", "marker": ""}
    return looks


def _choose_looks_of_momenta(momenta: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Choose the looks of estimators by their momenta; those without a momentum have the looks of their kind."""
    looks = choose_looks_of_words(name for name, momentum in momenta.items() if np.isnan(momentum))
    kinds: list[str] = []
    for name, momentum in momenta.items():
        if np.isnan(momentum):
            continue
        kind = find_kind(name)
        words, line = (kind.words, _LINES[kind.line]) if kind else (name.split(" (")[0], "-")
        if words not in kinds:
            kinds.append(words)
        # A marker tells apart estimators of one colour, also where their lines lie on each other.
        marker = " os^D"[kinds.index(words) % 5].strip()
        looks[name] = {"color": find_colour(momentum), "linestyle": line, "marker": marker}
    return looks
