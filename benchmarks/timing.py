"""How everything here is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

THREADS = 2  # unless a part has its own
HEADING = """\
| what | side | seconds | against | seconds | ratio | at most | note |
|---|---|--:|---|--:|--:|--:|---|"""


@dataclass(frozen=True)
class Result:
    """One line of the table: medians in seconds, what their ratio should be at most."""

    what: str
    side: str
    seconds: float
    against: str
    reference: float
    limit: float | None = None  # of the ratio; None: for information
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.seconds / self.reference

    def write_row(self) -> str:
        """Write the line of the table; a ratio above its limit is marked."""
        cells = [
            self.what,
            self.side,
            f"{self.seconds:.3g}",
            self.against,
            f"{self.reference:.3g}",
            f"{self.ratio:.3f}",
            self._write_limit(),
            self.note,
        ]
        return f"| {' | '.join(cells)} |"

    def _write_limit(self) -> str:
        if self.limit is None:
            return ""
        mark = " ✗" if self.ratio > self.limit else ""
        return f"{self.limit:g}{mark}"


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """One plain forward of each batch, against which others are measured."""
    for batch in batches:
        model(batch)


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each side; a round runs every side once, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            taken = time_once(run)
            if number > 0:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def time_once(run: Callable[[], object]) -> float:
    """Measure how many seconds one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
