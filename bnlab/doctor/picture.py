"""The picture of a diagnosis, as SVG: how far each layer's running statistics are off.

A row is a layer, the first one on top, so that names can be read on a telephone. Widths are shares of the room there is
and heights are pixels: text has one size everywhere. The page's style says the colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_LOWEST = -3  # exponent of the gap at the left end of the axis; smaller ones are drawn there
_TALLEST = 22  # pixels of a row
_LOWEST_ROW = 5
_ROOM = 1100  # pixels for all rows, unless they are then lower than _LOWEST_ROW
_TEXT = 14  # pixels between lines of text
_TOP = 26  # pixels above the rows: the title
_BOTTOM = 44  # pixels below: numbers and title of the axis
_LEFT = 34  # percent of the width, where the axis begins
_RIGHT = 97
_LETTERS = 17  # of a name, where there is room for it on a telephone
_KINDS = {"mean_gap": "mean", "var_gap": "var"}  # columns that are drawn, and their style


@dataclass(frozen=True)
class Picture:
    """What is drawn, and where.

    Attributes:
        rows: of `Diagnosis.table`, those with `mean_gap` and `var_gap`.
        step: pixels from a row to the next.
        highest: exponent of the gap at the right end of the axis.
    """

    rows: Sequence[Mapping[Any, Any]]
    step: float
    highest: int

    @property
    def bottom(self) -> float:
        """Where the last row ends, in pixels from the top."""
        return _TOP + self.step * len(self.rows)

    def place(self, exponent: float) -> float:
        """Place a gap's exponent on the axis, in percent of the width."""
        share = (exponent - _LOWEST) / (self.highest - _LOWEST)
        return _LEFT + (_RIGHT - _LEFT) * share

    def place_row(self, number: int) -> float:
        """Place the middle of a row, in pixels from the top."""
        return _TOP + self.step * (number + 0.5)


def draw_layers(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Draw gaps of layers as an SVG element.

    Args:
        rows: of `Diagnosis.table`, of the layers that data has reached, in order of depth.
    """
    step = min(_TALLEST, max(_LOWEST_ROW, _ROOM / len(rows)))
    picture = Picture(rows, step, _find_highest(rows))
    height = picture.bottom + _BOTTOM
    about = f"Gap of the running statistics of {len(rows)} layers from exact ones, by depth"
    parts = [
        f'<svg class="layers" role="img" aria-label="{about}" width="100%" height="{height:.0f}">',
        *_draw_grid(picture),
        *_draw_path(picture, "mean_gap"),
        *_draw_path(picture, "var_gap"),
    ]
    for number, row in enumerate(rows):
        parts += _draw_row(picture, number, row)
    return "\n".join([*parts, "</svg>"])


def _find_highest(rows: Sequence[Mapping[Any, Any]]) -> int:
    """Find the exponent at the right end of the axis, at least 0."""
    largest = 1.0
    for row in rows:
        gaps = [row[column] for column in _KINDS]
        largest = max(largest, *filter(math.isfinite, gaps))
    return math.ceil(math.log10(largest))


def _draw_grid(picture: Picture) -> Iterator[str]:
    """Draw titles, numbers and vertical lines."""
    bottom = picture.bottom
    center = (_LEFT + _RIGHT) / 2
    yield _write("layer", 32, _TOP - 10, "end soft")
    yield _write("off by (log axis)", center, _TOP - 10, "middle soft")
    yield _write("σ and |log ratio|", center, bottom + 2.4 * _TEXT, "middle soft")
    exponents = range(_LOWEST, picture.highest + 1)
    every = math.ceil(len(exponents) / 4)  # numbers that a telephone has room for
    for exponent in exponents:
        x = picture.place(exponent)
        yield _draw_line(x, _TOP, x, bottom, "grid")
        if exponent % every == 0:
            yield _write(f"{10.0**exponent:g}", x, bottom + _TEXT, "middle soft")


def _draw_path(picture: Picture, column: str) -> Iterator[str]:
    """Draw lines from each layer to the next."""
    previous = None
    for number, row in enumerate(picture.rows):
        point = _find_point(picture, number, row[column])
        if previous is not None and point is not None:
            yield _draw_line(*previous, *point, f"path {_KINDS[column]}")
        previous = point


def _draw_row(picture: Picture, number: int, row: Mapping[Any, Any]) -> Iterator[str]:
    """Draw a layer: its name where there is room, and a mark for each gap."""
    middle = picture.place_row(number)
    told = f"{row['layer']}: mean off by {row['mean_gap']:.2g} σ, variance by |log ratio| {row['var_gap']:.2g}"
    yield f"<g><title>{escape(told)}</title>"  # browsers show it beside the pointer
    yield _draw_line(33, middle, _RIGHT, middle, "row")
    if number % math.ceil((_TEXT - 1) / picture.step) == 0:
        yield _write(_shorten(row["layer"]), 32, middle + 4, "end")

    radius = min(4.5, 0.45 * picture.step)
    for column, kind in _KINDS.items():
        point = _find_point(picture, number, row[column])
        if point is not None:
            yield f'<circle class="{kind}" cx="{point[0]:.2f}%" cy="{point[1]:.1f}" r="{radius:.1f}"/>'
    if not math.isfinite(row["mean_gap"] + row["var_gap"]):
        yield _write("not finite", _RIGHT, middle + 4, "end bad")
    yield "</g>"


def _find_point(picture: Picture, number: int, gap: float) -> tuple[float, float] | None:
    """Find where a gap is drawn, in percent and pixels; None where it is not finite."""
    if not math.isfinite(gap):
        return None
    exponent = math.log10(max(gap, 10.0**_LOWEST))
    return picture.place(exponent), picture.place_row(number)


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
    return f'<text class="{style}" x="{x:.2f}%" y="{y:.1f}">{escape(text)}</text>'


def _draw_line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'
