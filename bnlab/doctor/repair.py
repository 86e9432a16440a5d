"""A repair: new running statistics that were written into a model, or why they were not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bnlab.statistics.network import Lending, Statistics, digest_weights, running_statistics


@dataclass(frozen=True)
class Repair:
    """What a repair did; print it.

    Attributes:
        written: whether new statistics were written.
        reason: why, or why not.
        statistics: the new ones; None where they could not be measured.
        before: the old ones; None where nothing was written.
        lending: what puts the old ones back.
    """

    written: bool
    reason: str
    statistics: Statistics | None = None
    before: Statistics | None = None
    lending: Lending | None = None

    def undo(self) -> None:
        """Put the old statistics back, bit for bit; nothing to do where none were written."""
        if self.lending is not None:
            self.lending.give_back()

    def save_undo(self, path: str | Path) -> None:
        """Write the old statistics, with a digest of the weights: `Statistics.load(path).write_to(model)` undoes it.

        Where old values were not finite, `write_to` refuses them; `undo` and the command `bnlab undo` put back any.

        Raises:
            ValueError: nothing was written, so that there is nothing to put back.
            OSError: the file cannot be written.
        """
        if self.before is None:
            raise ValueError("save_undo: nothing was written into the model, so that there is nothing to put back")
        self.before.save(path)

    def __str__(self) -> str:
        if not self.written or self.statistics is None:
            return f"Not recalibrated: {self.reason}."
        return f"Recalibrated {len(self.statistics)} batch norms: {self.reason}."


def write_repair(model: nn.Module, statistics: Statistics, reason: str) -> Repair:
    """Write statistics into a model, all or none.

    Raises:
        ValueError: the buffers cannot hold a value; nothing is written then.
    """
    before = running_statistics(model)
    before.network = digest_weights(model)
    lending = Lending(model, statistics, "repair")
    lending.note()
    statistics.write_to(model)
    return Repair(True, reason, statistics, before, lending)
