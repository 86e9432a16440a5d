"""Shifts between the images of training and those that are predicted: corruptions in three strengths, or other fonts.

A shift is `none`, a corruption with its strength, such as `noise:1`, or the fonts of glyphs, such as `fonts:dejavu`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bnlab.harness.artifacts.data import Data
from bnlab.harness.errors import UserError
from bnlab.harness.settings import require_one_of

STRENGTHS = (1, 2, 3)
_WIDTH = 116  # of the documentation


@dataclass(frozen=True)
class Corruption:
    """What a corruption is given at each strength, and what it does."""

    amounts: tuple[float, float, float]  # of strength 1, 2 and 3
    words: str  # for the documentation


CORRUPTIONS = {
    "blur": Corruption(
        (1 / 32, 2 / 32, 3 / 32),
        "means of neighbouring pixels with Gaussian weights, whose standard deviation is 1/32, 1/16, 3/32 of the "
        "shorter side; pixels outside of the image are those of its edge",
    ),
    "contrast": Corruption(
        (0.5, 0.3, 0.15),
        "less contrast: of each pixel's difference to the mean of its channel 0.5, 0.3, 0.15 is left",
    ),
    "noise": Corruption(
        (0.1, 0.2, 0.3),
        "normal noise on each pixel, with a standard deviation of 0.1, 0.2, 0.3 of the range",
    ),
    "occlusion": Corruption(
        (1 / 4, 3 / 8, 1 / 2),
        "a square of 0 anywhere within the image, with a side of 1/4, 3/8, 1/2 of the shorter one in whole pixels",
    ),
    "translation": Corruption(
        (1 / 8, 2 / 8, 3 / 8),
        "a move up, down, left or right by 1/8, 1/4, 3/8 of the shorter side in whole pixels; pixels that come in are "
        "0",
    ),
}
"""By name: `shifts=noise:1` is the one called noise, of strength 1. `corruptions` has the functions."""


def find_corruption(shift: str) -> Corruption | None:
    """Find the corruption that a shift names, such as `noise:1`; None for other shifts."""
    name, _, _ = shift.partition(":")
    return CORRUPTIONS.get(name)


def describe_corruptions() -> str:
    """Write what each corruption does, a Markdown list."""
    items = []
    for name, corruption in CORRUPTIONS.items():
        items.append(textwrap.fill(f"- `{name}`: {corruption.words}", _WIDTH, subsequent_indent="  "))
    return "\n".join(items)


def check_shifts(shifts: Sequence[Any], config: Data, splits: Sequence[str]) -> None:
    """Raise UserError unless the images of these splits have each of these shifts."""
    known = ["none", *(f"{name}:{strength}" for name in CORRUPTIONS for strength in STRENGTHS)]
    # Fonts can be changed for test images only.
    if [*splits] == ["test"]:
        known += config.list_shifts()

    for shift in shifts:
        require_one_of("shifts", shift, known)
        if find_corruption(shift) and not config.has_known_range():
            raise UserError(
                f"shifts={shift}: data={config.name} has float images, of which black and white are not known; "
                "give bytes (uint8), which are standardized too"
            )
