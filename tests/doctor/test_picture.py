"""The picture of a diagnosis: marks stand where the axes say, and names have room."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import pytest

from bnlab.doctor.picture import draw_layers


def draw(mean_gaps: Sequence[float], *, var_gap: float = 0.01, name: str = "layer") -> str:
    """Draw layers with these gaps."""
    return draw_layers([{"layer": name, "mean_gap": mean_gap, "var_gap": var_gap} for mean_gap in mean_gaps])


def find_numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


def find_words(style: str, text: str) -> list[str]:
    return re.findall(rf'<text class="{style}"[^>]*>([^<]*)</text>', text)


def test_gaps_stand_where_the_logarithmic_axis_says() -> None:
    drawn = draw([0.0, 0.001, 0.01, 0.5, 10.0])

    lines = find_numbers(r'<line class="grid" x1="([\d.]+)%', drawn)
    decade = (lines[-1] - lines[0]) / 4  # from 0.001 to 10
    exponents = [-3, -3, -2, math.log10(0.5), 1]  # nothing is drawn left of the axis
    expected = [lines[0] + decade * (exponent + 3) for exponent in exponents]
    assert len(lines) == 5
    assert find_numbers(r'<circle class="mean" cx="([\d.]+)%', drawn) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("largest", "numbers"), [(0.02, 4), (30.0, 3), (9e8, 3)])
def test_the_axis_has_few_numbers_and_reaches_the_largest_gap(largest: float, numbers: int) -> None:
    drawn = draw([largest])

    words = find_words("middle soft", drawn)
    (center,) = find_numbers(r'<circle class="mean" cx="([\d.]+)%', drawn)
    lines = find_numbers(r'<line class="grid" x1="([\d.]+)%', drawn)
    assert len([word for word in words if re.fullmatch(r"[\d.e+-]+", word)]) == numbers
    assert lines[0] < center < lines[-1]


def test_a_gap_that_is_not_finite_breaks_the_line_and_is_named() -> None:
    drawn = draw([0.1, math.nan, 0.2, math.inf])

    assert find_words("end bad", drawn) == ["not finite", "not finite"]
    assert drawn.count('<circle class="mean"') == 2
    assert drawn.count('<circle class="var"') == 4
    assert drawn.count('"path mean"') == 0
    assert drawn.count('"path var"') == 3
    assert "<circle" not in draw([math.inf], var_gap=math.nan)


NAMES = {
    "layer4.1.bn2": "layer4.1.bn2",
    "layer4.0.downsample.1": "l4.0.downsample.1",
    "features.denseblock4.denselayer16.norm1": "f.d4.d16.norm1",
    "features.12.block.1.1": "f.12.block.1.1",
    "a.normalization_of_the_stem": "…tion_of_the_stem",
    "": "the model",
}


@pytest.mark.parametrize("name", NAMES)
def test_long_names_are_shortened_from_the_left(name: str) -> None:
    drawn = draw([0.1], name=name)

    assert find_words("end", drawn) == [NAMES[name]]
    assert f"<title>{name}: mean off by 0.1 σ" in drawn


@pytest.mark.parametrize("layers", [1, 20, 53, 250])
def test_names_do_not_overlap_and_the_picture_ends(layers: int) -> None:
    drawn = draw([0.1] * layers)

    heights = find_numbers(r'<text class="end" x="[\d.]+%" y="([\d.]+)"', drawn)
    (height,) = find_numbers(r'height="(\d+)">', drawn)
    assert all(later - earlier >= 13 for earlier, later in itertools.pairwise(heights))
    assert max(heights) < height < 1400
    assert drawn.count("<circle") == 2 * layers
