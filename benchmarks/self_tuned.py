"""Cost in training of layers that choose their momentum themselves."""

from __future__ import annotations

from benchmarks.recording import TRAININGS, Training
from benchmarks.timing import Result, alternate
from bnlab.nn import SelfTuned

ROUNDS, THREADS = 15, 1
LIMITS = (1.02, 1.02, 1.01)


def results() -> list[Result]:
    return [_compare(training, limit) for training, limit in zip(TRAININGS, LIMITS, strict=True)]


def _compare(training: Training, limit: float) -> Result:
    plain = training.build()
    own = SelfTuned.convert(training.build())
    sides = {"plain": lambda: training.run(plain), "own": lambda: training.run(own)}
    median = alternate(sides, ROUNDS)
    return Result(f"training, {training.name}", "self-tuned", median["own"], "plain", median["plain"], limit)
