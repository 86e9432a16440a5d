"""A verdict: where the fault is, with its reason and the numbers that decided it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bnlab.common.scores import Difference, describe_number
from bnlab.doctor.interventions.experiment import Trial
from bnlab.doctor.thresholds import NEAR_A_LINE

Word = Literal["averages", "averages or images", "images", "network", "mode", "batches", "healthy", "undecided"]

ELSEWHERE = "labels, their order, preprocessing, loaded weights"
"""What to look at where a score is too low and nothing that was tried brings it back."""

BROKEN = "Some of them are not finite, or negative variances; all that comes after them in eval mode is spoiled."


@dataclass(frozen=True)
class Edge:
    """A number that decided a verdict, and the line from which on it would be another one.

    Attributes:
        what: the number, in words.
        value: the number, in the unit of the line.
        line: where the other verdict begins.
        beyond: the verdict on the other side.
        scale: by which distances from the line are divided.
        is_share: whether both are shares, which are written in percent, or percentage points.
        unit: what is written behind them.
    """

    what: str
    value: float
    line: float
    beyond: Word
    scale: float
    is_share: bool = False
    unit: str = ""

    @property
    def distance(self) -> float:
        """How far the number is from its line, in units of `scale`."""
        return abs(self.value - self.line) / self.scale

    def __str__(self) -> str:
        side = "above" if self.value <= self.line else "below"
        return (
            f"{self.what} {self._describe(self.value)}; {side} {self._describe(self.line)} the verdict is {self.beyond}"
        )

    def _describe(self, number: float) -> str:
        reported = f"{100 * number:z.1f}" if self.is_share else describe_number(number)
        return f"{reported}{self.unit}"


@dataclass(frozen=True)
class Verdict:
    """Where the fault is.

    Attributes:
        word: "averages", "images", "network", "mode" or "batches": what brings the score back, undone; "averages or
            images" where nothing tells which of the two are others than they should be; "healthy": nothing that was
            tried brings anything back, and the model is not known to be bad; "undecided": too few images to tell.
        sentence: the reason, with its numbers.
        gain: what exact statistics gain over running ones.
        chosen: the undos that explain it: of the same size, and smaller ones that may.
        edges: numbers that decided it, each with its line; none where values that are not finite decided.
    """

    word: Word
    sentence: str
    gain: Difference
    chosen: Sequence[Trial] = ()
    edges: Sequence[Edge] = ()

    @property
    def nearest(self) -> Edge | None:
        """The number that is nearest to its line."""
        return min(self.edges, key=lambda edge: edge.distance, default=None)

    def add_nearest(self) -> Verdict:
        """Say in the sentence which line is near, if one is."""
        nearest = self.nearest
        if nearest is None or nearest.distance >= NEAR_A_LINE:
            return self
        return replace(self, sentence=f"{self.sentence} Near a line: {nearest}.")
