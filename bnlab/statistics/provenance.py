"""What a measurement of statistics took, and the outcome of the evaluation that checks it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """Cost of a measurement, on this rank.

    Attributes:
        images: images in the data: the rows of each batch's first tensor.
        batches: batches in the data.
        forwards: how often a batch's forward was begun at its input, without those that prepare the measurement or
            check it; more than `batches` where memory was short, or there were several passes.
        input_bytes: bytes of the batches, which are held.
        peak_bytes: the most bytes that waiting forwards held at once, by what the first batch's held at each layer.
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
    """Outcome of an ordinary evaluation of some batches, or of all, under the result.

    Attributes:
        held: whether all layers were given what the statistics were measured on.
        layer: the first layer that was not; None if there is none.
        off: the largest difference, in σ and relative variance; inf where layers are called in another order.
        held_layer_by_layer: whether, after this check failed, that of the statistics measured layer by layer held.
    """

    held: bool
    layer: str | None
    off: float
    held_layer_by_layer: bool = False

    @property
    def is_exact(self) -> bool:
        """Return whether the last check held.

        It compares some batches, and does not see a remainder that was warned of, of layers that depend on
        themselves.
        """
        return self.held or self.held_layer_by_layer

    def __str__(self) -> str:
        if self.held:
            return "check held"
        if self.is_exact:
            return f"check failed at {self.layer}, measured layer by layer"
        return f"check failed at {self.layer}, so not exact"
