"""What a measurement of statistics took, and the outcome of the evaluation that checks it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """Cost of a measurement, on this rank.

    Attributes:
        images: images in the data: the rows of each batch's first tensor.
        batches: batches in the data.
        forwards: how often a batch's forward was begun at its input, except for a few images to profile and to check;
            more than `batches` where memory was short, or there were several passes.
        input_bytes: bytes of the batches, which are held.
        peak_bytes: the most bytes that forwards needed at once, according to the profile of one.
        passes: passes over all layers; more than one only where layers are called several times.
    """

    images: int
    batches: int
    forwards: int
    input_bytes: int
    peak_bytes: int = 0
    passes: int = 1


@dataclass(frozen=True)
class Check:
    """Outcome of an ordinary evaluation under the result, of two batches and of one of another shape.

    Attributes:
        held: whether all layers were given what the statistics were measured on.
        layer: the first layer that was not; None if there is none.
        off: the largest difference, in σ and relative variance.
        again_held: whether the check of what was then measured layer by layer held; None if nothing was.
    """

    held: bool
    layer: str | None
    off: float
    again_held: bool | None = None

    @property
    def is_exact(self) -> bool:
        """Return whether the statistics are those of an ordinary evaluation, by the last check."""
        return self.held if self.again_held is None else self.again_held

    def __str__(self) -> str:
        if self.held:
            return "check held"
        if self.is_exact:
            return f"check failed at {self.layer}, measured layer by layer"
        return f"check failed at {self.layer}, not exact"
