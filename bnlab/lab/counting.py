"""How far the networks of a sweep have come, in a line: done, the current ones, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.producing import format_seconds
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.jobs import find_failure, list_waiting
from bnlab.harness.progress import read_state

_SPARING = 50  # times as long as looking takes, it is not looked again: it takes little from training
_SOON = 2.0  # seconds at the beginning and the end without a time that is left

Seen = TypeVar("Seen")


class NetworkCount:
    """Counts the networks of jobs that are waiting, from what their processes have written."""

    def __init__(self, waiting: list[Config], announce: Callable[[], None]) -> None:
        self._waiting = waiting
        self._announce = announce
        self._total = len({Run(config).id for config in waiting})
        self._news: tuple[object, ...] = (0,)
        self._started = time.monotonic()
        self._list_left = _Sparingly(self._find_left)
        self._list_current = _Sparingly(self._find_current)

    def describe(self) -> str:
        """Write the line, and announce it where a network has been trained or done."""
        done = self._total - len(self._list_left())
        current = self._list_current()
        news = (done, *(words for words, share in current if share == 1))
        if news != self._news:
            self._news = news
            self._announce()

        share = (done + sum(share for _, share in current)) / self._total
        counted = f"{done:,} of {self._total:,} networks{self._describe_time(share)}"
        if not current and not done:
            return f"{counted} · starting"
        return " · ".join([counted, *(words for words, _ in current)])

    def _describe_time(self, share: float) -> str:
        """Say how long the rest of the sweep takes if it goes on as it has; nothing where the rest is measuring."""
        passed = time.monotonic() - self._started
        if not share or passed < _SOON:
            return ""
        left = passed / share * (1 - share)
        return "" if left < _SOON else f", about {format_seconds(left)} left"

    def _find_left(self) -> list[Run]:
        """Find the networks with a job that is neither done nor failed."""
        self._waiting = [config for config in list_waiting(self._waiting) if not find_failure(Run(config)).exists()]
        return list({Run(config).id: Run(config) for config in self._waiting}.values())

    def _find_current(self) -> list[tuple[str, float]]:
        """Find the networks that are trained or measured now: words, and the share that is done."""
        current = []
        for run in self._list_left():
            state = read_state(run.folder)
            if state is not None:
                current.append((f"{run.id} {state.words}", state.share))
        return current


class _Sparingly(Generic[Seen]):
    """Calls a function, and repeats its answer for a time that depends on how long that took."""

    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look
        self._again_at = 0.0

    def __call__(self) -> Seen:
        began = time.monotonic()
        if began >= self._again_at:
            self._seen = self._look()
            ended = time.monotonic()
            self._again_at = ended + _SPARING * (ended - began)
        return self._seen
