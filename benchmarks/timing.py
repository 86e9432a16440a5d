"""The frame of all benchmarks: sides are timed in alternation, and what is compared of them is a row of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

HEADING = """\
| what | side | seconds | against | seconds | ratio | at most | note |
|---|---|--:|---|--:|--:|--:|---|"""

Sides = Mapping[str, Callable[[], object]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Result:
    """One row of the table: medians in seconds, what their ratio should be at most."""

    what: str
    side: str
    seconds: float
    against: str
    reference: float
    limit: float | None = None  # of the ratio; None: for information
    note: str = ""

    def write_row(self) -> str:
        """Write the row; a ratio above its limit is marked."""
        ratio = self.seconds / self.reference
        limit = ""
        if self.limit is not None:
            mark = " ✗" if ratio > self.limit else ""
            limit = f"{self.limit:g}{mark}"
        cells = (
            self.what,
            self.side,
            f"{self.seconds:.3g}",
            self.against,
            f"{self.reference:.3g}",
            f"{ratio:.3f}",
            limit,
            self.note,
        )
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Timed:
    """Median seconds of several sides of one thing."""

    what: str
    seconds: Mapping[str, float]

    def compare(self, side: str, against: str | float, limit: float | None = None, note: str = "") -> Result:
        """Compare a side with another, or with so many seconds."""
        seconds = self.seconds[side]
        if isinstance(against, str):
            return Result(self.what, side, seconds, against, self.seconds[against], limit, note)
        return Result(self.what, side, seconds, f"{against:g} s", against, limit, note)


def alternate(what: str, rounds: int, sides: Sides, clock: Clock = time.perf_counter) -> Timed:
    """Time the sides by a clock; a round runs every side once, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    # Sides take turns, so that whatever slows the machine down for a while slows all of them. The first round
    # does not count, because the first calls of a process take longer.
    for number in range(rounds + 1):
        for name, run in sides.items():
            taken = time_once(run, clock)
            if number > 0:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Timed(what, medians)


def time_once(run: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Measure how many seconds one call takes by a clock, with the work that it gives to an accelerator."""
    _wait_for_device()
    started = clock()
    run()
    _wait_for_device()
    return clock() - started


def _wait_for_device() -> None:
    # A call only queues the accelerator's work. Where nothing uses one, synchronizing would initialize it.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
