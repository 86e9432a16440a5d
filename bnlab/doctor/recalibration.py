"""A recalibration: what was gained, what was written, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.doctor.scores import Difference, Scores
from bnlab.doctor.undo import Undo
from bnlab.doctor.verdict import tell_gain, tell_score
from bnlab.doctor.words import count_things
from bnlab.layers import join_names
from bnlab.statistics import Statistics


@dataclass(frozen=True)
class Recalibration:
    """What `bnlab.recalibrate` did; a block (`with recalibration:`) puts the old statistics back at its end.

    Attributes:
        written: whether the new statistics were written.
        reason: why, or why not.
        statistics: the new statistics; None where all layers are frozen.
        scores: of the images under the old ("running") and the new ("exact") ones; None where they were not judged.
        frozen: names of layers that were left as they were because they are frozen.
        undoing: the old buffers; None where nothing was written.
    """

    written: bool
    reason: str
    statistics: Statistics | None
    scores: Scores | None
    frozen: tuple[str, ...]
    undoing: Undo | None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that have new statistics."""
        return () if self.statistics is None else tuple(self.statistics)

    @property
    def before(self) -> float | None:
        """Mean score of the images under the old statistics; None where they were not judged."""
        return None if self.scores is None else self.scores.mean("running")

    @property
    def after(self) -> float | None:
        """Mean score of the images under the new statistics; None where they were not judged."""
        return None if self.scores is None else self.scores.mean("exact")

    @property
    def gain(self) -> Difference | None:
        """After minus before, with its 95% interval over images; None where they were not judged."""
        return None if self.scores is None else self.scores.compare("exact", "running")

    def undo(self) -> None:
        """Put the old statistics back, bit for bit; nothing to do where none were written, or a second time.

        Raises:
            RuntimeError: something else has written the buffers since; nothing is put back.
        """
        if self.undoing is not None:
            self.undoing.put_back()

    def save_undo(self, path: str | Path) -> None:
        """Write a safetensors file with the old statistics, for `bnlab.doctor.undo_from_file` and `bnlab undo`.

        It has digests (SHA-256) of the model's weights too, so that it is not used for another model.

        Raises:
            ValueError: nothing was written into the model.
            RuntimeError: something else has written the buffers since.
            OSError: the file cannot be written.
        """
        if self.undoing is None:
            raise ValueError("save_undo: nothing was written into the model, so that there is nothing to put back")
        self.undoing.save(path)

    def __enter__(self) -> Recalibration:
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"Not recalibrated: {self.reason}."]
        if self.written:
            lines = [f"Recalibrated {count_things(len(self.layers), 'batch-norm layer')}: {self.reason}."]
        scores, gain = self.scores, self.gain
        if scores is not None and gain is not None:
            before = tell_score(scores.mean("running"), scores)
            after = tell_score(scores.mean("exact"), scores)
            told = f"New statistics {tell_gain(gain, scores)} on {count_things(gain.images, 'image')}."
            lines.append(f"{scores.metric}: {before} before, {after} after. {told}")

        left = []
        if self.frozen:
            left.append(f"{join_names(self.frozen)} (frozen)")
        if self.statistics is not None and self.statistics.unseen:
            left.append(f"{join_names(self.statistics.unseen)} (no statistics)")
        if left:
            lines.append(f"Left as they were: {'; '.join(left)}.")
        return "\n".join(lines)

    __repr__ = __str__
