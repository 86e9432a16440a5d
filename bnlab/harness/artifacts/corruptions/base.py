"""The base of all corruptions: what one does to an image, in three strengths."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.harness.components import COMPONENTS, Component

Amounts = tuple[float | Fraction, float | Fraction, float | Fraction]
"""Amounts of strength 1, 2 and 3; the documentation writes a fraction as one."""
STRENGTHS = (1, 2, 3)
_WIDTH = 116  # of the documentation


@dataclass(unsafe_hash=True)
class Corruption(Component):
    """A change of an image's pixels.

    Attributes:
        amounts: those of strength 1, 2 and 3, of which the class says what they are amounts of.
        words: what it does, for the documentation, which writes the amounts for {amounts}.
        version: raised when the same strength gives other images, so that what was measured on them is measured again.
    """

    group: ClassVar[str] = "corruption"
    amounts: ClassVar[Amounts]
    words: ClassVar[str]
    version: ClassVar[int] = 1

    def amount_of(self, strength: int) -> float:
        """Return the amount of a strength from 1 to 3."""
        return float(self.amounts[strength - 1])

    def apply(self, image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
        """Corrupt an image by an amount; it is not written to.

        Args:
            image: [C, H, W], pixels from 0 to 1.
            amount: how much.
            generator: what is drawn comes from it. The same image has the same draws at each strength.

        Returns:
            The corrupted image, whose pixels may lie outside of 0 to 1.
        """
        raise NotImplementedError


def list_corruptions() -> dict[str, Corruption]:
    """List all corruptions by name."""
    return COMPONENTS[Corruption.group]


def find_corruption(shift: str) -> Corruption | None:
    """Find the corruption that a shift names, such as `noise:1`; None for other shifts."""
    name, _, _ = shift.partition(":")
    return list_corruptions().get(name)


def describe_corruptions() -> str:
    """Write what each corruption does, a Markdown list."""
    items = [_describe(corruption) for corruption in list_corruptions().values()]
    return "\n".join(items)


def _describe(corruption: Corruption) -> str:
    amounts = ", ".join(str(amount) for amount in corruption.amounts)
    words = corruption.words.format(amounts=amounts)
    return textwrap.fill(f"- `{corruption.name}`: {words}", _WIDTH, subsequent_indent="  ")
