"""Which checkpoints a measurement reads: its module says so with one of these functions, or its own, as `reads`."""

from __future__ import annotations

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.sources import RunningAverage, Source


def no_checkpoint(run: Run, sources: list[Source]) -> list[int]:
    """None: the recorded batch moments and the log are enough."""
    return []


def last_checkpoint(run: Run, sources: list[Source]) -> list[int]:
    """That of the last step of `evaluate_at`."""
    return run.wanted[-1:]


def all_checkpoints(run: Run, sources: list[Source]) -> list[int]:
    """Those of all steps of `evaluate_at`."""
    return run.wanted


def frozen_checkpoint(run: Run, sources: list[Source]) -> list[int]:
    """The one from which running averages are taken where exact statistics were frozen; else none."""
    has_running = any(isinstance(source, RunningAverage) for source in sources)
    is_frozen = run.frozen_from is not None and run.config.freeze_with == "exact"
    return run.wanted[-1:] if has_running and is_frozen else []
