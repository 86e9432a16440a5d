"""Progress on stderr: a line that is written over in a terminal, at most a line a minute in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

_MINUTE = 60.0
_MOMENT = 0.2  # seconds between changes in a terminal


@dataclass
class Progress:
    """Counts batches, and says from time to time how many there were.

    Attributes:
        in_terminal: whether stderr is a terminal.
        read: batches read so far.
        run: batches that the model was run with so far.
        started: when counting began, as `time.monotonic` has it.
        told: when the numbers were last said.
    """

    in_terminal: bool = field(default_factory=lambda: sys.stderr.isatty())
    read: int = 0
    run: int = 0
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def count_read(self, batches: Iterable[Any] | None) -> Iterator[Any] | None:
        """Count batches while they are read; None without any."""
        return None if batches is None else self._count(batches)

    def _count(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self.read += 1
            self.tell()
            yield batch

    @contextlib.contextmanager
    def counting_runs(self, model: nn.Module) -> Iterator[None]:
        """Count the model's forwards inside the block; afterwards the terminal's line is empty again."""

        def count(*_: object) -> None:
            self.run += 1
            self.tell()

        handle = model.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()
            if self.in_terminal:
                print("\r\033[K", end="", file=sys.stderr, flush=True)

    def tell(self) -> None:
        """Say how far it is, if it is time."""
        now = time.monotonic()
        if now - self.told < (_MOMENT if self.in_terminal else _MINUTE):
            return
        self.told = now
        words = f"{self.read:,} batches read, " if self.read else ""
        line = f"{words}{self.run:,} run, {now - self.started:,.0f} s"
        if self.in_terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
