"""The picture of a diagnosis, as SVG: how far each layer's running statistics are off, and what that costs.

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
_TOP = 26  # pixels above the rows: titles of the panels
_BOTTOM = 44  # pixels below: numbers and titles of the axes
_RIGHT = 97  # percent of the width, where the last panel ends
_LETTERS = 17  # of a name, where there is room for it on a telephone


@dataclass(frozen=True)
class Panel:
    """A part of the picture with an axis of its own, in percent of the width.

    Attributes:
        left, width: where it is.
        low, high: values at its left and right end, as `place` takes them.
    """

    left: float
    width: float
    low: float
    high: float

    def place(self, value: float) -> float:
        """Find where a value stands, in percent of the picture's width; values beyond an end stand there."""
        share = (value - self.low) / (self.high - self.low)
        return self.left + self.width * min(1.0, max(0.0, share))


@dataclass(frozen=True)
class Picture:
    """What is drawn, and where.

    Attributes:
        rows: of `Diagnosis.table`, those with `mean_gap`, `var_gap` and `cost`.
        step: pixels from a row to the next.
        gaps: the panel of gaps, decimal logarithms.
        costs: the panel of costs, multiplied by `scale`; None where no cost was measured.
        scale: 100 where costs are shares, which are drawn as points.
        unit: of the costs, in words.
    """

    rows: Sequence[Mapping[Any, Any]]
    step: float
    gaps: Panel
    costs: Panel | None
    scale: float
    unit: str

    @property
    def bottom(self) -> float:
        """Where the last row ends, in pixels from the top."""
        return _TOP + self.step * len(self.rows)


def draw_layers(rows: Sequence[Mapping[Any, Any]], are_shares: bool) -> str:
    """Draw gaps and costs of layers as an SVG element.

    Args:
        rows: of `Diagnosis.table`, of the layers that data has reached, in order of depth.
        are_shares: whether costs are shares, to be drawn as points.
    """
    picture = _plan(rows, are_shares)
    height = picture.bottom + _BOTTOM
    about = f"Gap of the running statistics of {len(rows)} layers from exact ones, by depth"
    parts = [
        f'<svg class="layers" role="img" aria-label="{about}" width="100%" height="{height:.0f}">',
        *_draw_grid(picture),
        *_draw_path(picture, "mean_gap", "mean"),
        *_draw_path(picture, "var_gap", "var"),
    ]
    for number, row in enumerate(rows):
        parts += _draw_row(picture, number, row)
    return "\n".join([*parts, "</svg>"])


def _plan(rows: Sequence[Mapping[Any, Any]], are_shares: bool) -> Picture:
    """Choose the heights of rows and the ends of axes."""
    step = min(_TALLEST, max(_LOWEST_ROW, _ROOM / len(rows)))
    scale = 100 if are_shares else 1
    unit = "points" if are_shares else "of the score"
    costs = [scale * row["cost"] for row in rows if math.isfinite(row["cost"])]

    highest = _find_highest(rows)
    if not costs:
        gaps = Panel(34, _RIGHT - 34, _LOWEST, highest)
        return Picture(rows, step, gaps, None, scale, unit)
    gaps = Panel(34, 36, _LOWEST, highest)
    smallest_axis = 1.0 if are_shares else 1e-9  # a point, so that what costs nothing looks so
    return Picture(rows, step, gaps, _plan_costs(costs, smallest_axis), scale, unit)


def _find_highest(rows: Sequence[Mapping[Any, Any]]) -> int:
    """Find the exponent at the right end of the axis of gaps, at least 0."""
    largest = 1.0
    for row in rows:
        gaps = (row["mean_gap"], row["var_gap"])
        largest = max(largest, *filter(math.isfinite, gaps))
    return math.ceil(math.log10(largest))


def _plan_costs(costs: Sequence[float], smallest_axis: float) -> Panel:
    """Choose the axis of costs, which reaches below 0 where a layer gains visibly by its running statistics."""
    highest = max(smallest_axis, *costs)
    lowest = min(costs)
    is_seen = lowest < -highest / 20
    low = -_round_up(-lowest) if is_seen else 0.0
    return Panel(76, _RIGHT - 76, low, _round_up(highest))


def _round_up(value: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    enough = (1 - 1e-9) * value / power  # 1.0000000001 is 1
    return power * next(step for step in (1, 2, 5, 10) if step >= enough)


def _draw_grid(picture: Picture) -> Iterator[str]:
    """Draw both panels' titles, numbers and vertical lines."""
    bottom = picture.bottom
    gaps = picture.gaps
    center = gaps.left + gaps.width / 2
    yield _write("layer", 32, _TOP - 10, "end soft")
    yield _write("off by (log axis)", center, _TOP - 10, "middle soft")
    yield _write("σ and |log ratio|", center, bottom + 2.4 * _TEXT, "middle soft")
    exponents = range(int(gaps.low), int(gaps.high) + 1)
    every = math.ceil(len(exponents) / 4)  # numbers that a telephone has room for
    for exponent in exponents:
        x = gaps.place(exponent)
        yield _draw_line(x, _TOP, x, bottom, "grid")
        if exponent % every == 0:
            yield _write(f"{10.0**exponent:g}", x, bottom + _TEXT, "middle soft")

    costs = picture.costs
    if costs is None:
        return
    center = costs.left + costs.width / 2
    yield _write("costs alone", center, _TOP - 10, "middle soft")
    yield _write(picture.unit, center, bottom + 2.4 * _TEXT, "middle soft")
    for value in sorted({costs.low, 0.0, costs.high}):
        x = costs.place(value)
        yield _draw_line(x, _TOP, x, bottom, "zero" if value == 0 else "grid")
        yield _write(f"{value:g}", x, bottom + _TEXT, "middle soft")


def _draw_path(picture: Picture, column: str, kind: str) -> Iterator[str]:
    """Draw lines from each layer to the next."""
    previous = None
    for number, row in enumerate(picture.rows):
        point = _find_point(picture, number, row[column])
        if previous is not None and point is not None:
            yield _draw_line(*previous, *point, f"path {kind}")
        previous = point


def _draw_row(picture: Picture, number: int, row: Mapping[Any, Any]) -> Iterator[str]:
    """Draw a layer: its name where there is room, a mark for each gap, a bar for the cost."""
    middle = _TOP + picture.step * (number + 0.5)
    yield f"<g><title>{escape(_tell(picture, row))}</title>"
    yield _draw_line(33, middle, _RIGHT, middle, "row")
    if number % math.ceil((_TEXT - 1) / picture.step) == 0:
        yield _write(_shorten(row["layer"]), 32, middle + 4, "end")
    for column, kind in (("mean_gap", "mean"), ("var_gap", "var")):
        point = _find_point(picture, number, row[column])
        if point is not None:
            yield f'<circle class="{kind}" cx="{point[0]:.2f}%" cy="{point[1]:.1f}" r="{_size(picture):.1f}"/>'
    if not math.isfinite(row["mean_gap"] + row["var_gap"]):
        end = picture.gaps.left + picture.gaps.width
        yield _write("not finite", end, middle + 4, "end bad")

    cost = picture.scale * row["cost"]
    if picture.costs is not None and math.isfinite(cost):
        left, right = sorted((picture.costs.place(0), picture.costs.place(cost)))
        thickness = 0.6 * picture.step
        yield (
            f'<rect class="cost" x="{left:.2f}%" y="{middle - thickness / 2:.1f}" '
            f'width="{right - left:.2f}%" height="{thickness:.1f}"/>'
        )
    yield "</g>"


def _find_point(picture: Picture, number: int, gap: float) -> tuple[float, float] | None:
    """Find where a gap is drawn, in percent and pixels; None where it is not finite."""
    if not math.isfinite(gap):
        return None
    exponent = math.log10(max(gap, 10.0**_LOWEST))
    return picture.gaps.place(exponent), _TOP + picture.step * (number + 0.5)


def _size(picture: Picture) -> float:
    return min(4.5, 0.45 * picture.step)


def _tell(picture: Picture, row: Mapping[Any, Any]) -> str:
    """Say a row in words, which browsers show beside the pointer."""
    words = f"{row['layer']}: mean off by {row['mean_gap']:.2g} σ, variance by |log ratio| {row['var_gap']:.2g}"
    if math.isfinite(row["cost"]):
        words += f", costs {picture.scale * row['cost']:.2g} {picture.unit}"
    return words


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
