"""How everything here is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

THREADS = 2  # unless a part has its own


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
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
