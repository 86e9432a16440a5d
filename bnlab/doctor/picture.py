"""The picture of a diagnosis, as SVG: how far each layer's running statistics are off.

A row is a layer, the first one on top, so that names can be read on a telephone. Widths are shares of the room there is
and heights are pixels: text has one size everywhere. The page's style says the colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

_LOWEST = -3  # exponent of the gap at the left end of the axis; smaller ones are drawn there
_LEFT, _RIGHT = 34, 97  # percent of the width, where the axis begins and ends
_TOP, _BOTTOM = 26, 44  # pixels above the rows, for the title, and below, for the axis
_TEXT = 14  # pixels between lines of text
_LETTERS = 17  # of a name, where there is room for it on a telephone
_KINDS = {"mean_gap": "mean", "var_gap": "var"}  # columns that are drawn, and their style


def draw_layers(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Draw gaps of layers as an SVG element.

    Args:
        rows: of `Diagnosis.table`, of the layers that data has reached, in order of depth.
    """
    step = min(22, max(5, 1100 / len(rows)))  # pixels of a row
    bottom = _TOP + step * len(rows)
    gaps = [row[column] for row in rows for column in _KINDS if math.isfinite(row[column])]
    highest = math.ceil(math.log10(max([1, *gaps])))  # exponent at the right end of the axis

    about = f"Gap of the running statistics of {len(rows)} layers from exact ones, by depth"
    parts = [f'<svg class="layers" role="img" aria-label="{about}" width="100%" height="{bottom + _BOTTOM:.0f}">']
    parts += _draw_axis(highest, bottom)

    rooms = [_TOP + step * (number + 0.5) for number in range(len(rows))]
    for column, kind in _KINDS.items():
        points = [(_place(row[column], highest), y) for row, y in zip(rows, rooms, strict=True)]
        for start, end in pairwise(points):
            parts.append(_draw_line(*start, *end, f"path {kind}"))

    names_every = math.ceil((_TEXT - 1) / step)
    for number, (row, y) in enumerate(zip(rows, rooms, strict=True)):
        name = _shorten(row["layer"] or "the model") if number % names_every == 0 else ""
        parts += _draw_row(row, name, y, highest, radius=min(4.5, 0.45 * step))
    return "\n".join([*filter(None, parts), "</svg>"])


def _draw_axis(highest: int, bottom: float) -> Iterator[str]:
    """Draw titles, numbers and vertical lines."""
    center = (_LEFT + _RIGHT) / 2
    yield _write("layer", 32, _TOP - 10, "end soft")
    yield _write("off by (log axis)", center, _TOP - 10, "middle soft")
    yield _write("σ and |log ratio|", center, bottom + 2.4 * _TEXT, "middle soft")
    exponents = range(_LOWEST, highest + 1)
    every = math.ceil(len(exponents) / 4)  # numbers that a telephone has room for
    for exponent in exponents:
        x = _place(10.0**exponent, highest)
        yield _draw_line(x, _TOP, x, bottom, "grid")
        if exponent % every == 0:
            yield _write(f"{10.0**exponent:g}", x, bottom + _TEXT, "middle soft")


def _draw_row(row: Mapping[Any, Any], name: str, y: float, highest: int, radius: float) -> Iterator[str]:
    """Draw a layer: its name, and a mark for each gap."""
    title = f"{row['layer']}: mean off by {row['mean_gap']:.2g} σ, variance by |log ratio| {row['var_gap']:.2g}"
    yield f"<g><title>{escape(title)}</title>"  # browsers show it beside the pointer
    yield _draw_line(33, y, _RIGHT, y, "row")
    yield _write(name, 32, y + 4, "end")
    for column, kind in _KINDS.items():
        x = _place(row[column], highest)
        if math.isfinite(x):
            yield f'<circle class="{kind}" cx="{x:.2f}%" cy="{y:.1f}" r="{radius:.1f}"/>'
    if not math.isfinite(row["mean_gap"] + row["var_gap"]):
        yield _write("not finite", _RIGHT, y + 4, "end bad")
    yield "</g>"


def _place(gap: float, highest: int) -> float:
    """Place a gap on the axis, in percent of the width; NaN where it is not finite."""
    if not math.isfinite(gap):
        return math.nan
    exponent = math.log10(max(gap, 10.0**_LOWEST))
    return _LEFT + (_RIGHT - _LEFT) * (exponent - _LOWEST) / (highest - _LOWEST)


def _shorten(name: str) -> str:
    """Shorten a long name: its parts, from the left, to a letter and the number at the end, until there is room."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= _LETTERS:
            break
        number = part[len(part.rstrip("0123456789")) :]
        parts[place] = number if number == part else part[0] + number
    short = ".".join(parts)
    return short if len(short) <= _LETTERS else f"…{short[1 - _LETTERS :]}"


def _write(text: str, x: float, y: float, style: str) -> str:
    return f'<text class="{style}" x="{x:.2f}%" y="{y:.1f}">{escape(text)}</text>' if text else ""


def _draw_line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Draw a line; nothing where an end is not finite."""
    if math.isnan(x1 + x2):
        return ""
    return f'<line class="{style}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'
