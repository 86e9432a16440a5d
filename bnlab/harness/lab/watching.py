"""What a person sees of a sweep: on a terminal one line that lives, elsewhere a line after some silence."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from bnlab.harness.progress import Progress, clear_line, find_width, fit, is_terminal, read_progress, say

if TYPE_CHECKING:
    from bnlab.harness.artifacts.job_settings import Config

_PAUSE = 0.5  # seconds between two looks
# After a look, 50 times as long passes as it took: looking takes at most 2% of the time from training.
_SPARING = 50
_SILENCE = 4.0  # seconds without a line; then one, and the next after twice the time
_LONGEST_SILENCE = 60.0
_LONG = 30.0  # seconds that a network takes, of which those before its first sign of life do not matter
_SOON = 2.0  # seconds at the beginning and the end without a time that is left


class Display:
    """Shows in its block what the sweep is doing.

    Drawn by hand: tqdm has bars of one process each, and neither it nor rich knows of lines that other processes write
    on the same terminal.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._describe: Callable[[], str] = str  # returns an empty line
        self._silence = _SILENCE
        self._said = ""
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._draw("")

    def begin(self, phase: str) -> None:
        """Say from now on that the sweep is in this phase."""
        self.show(lambda: phase)

    def show(self, describe: Callable[[], str]) -> None:
        """Show from now on what `describe` returns; it is asked again and again."""
        self._describe = describe
        self._silence = _SILENCE

    def print(self, *lines: str) -> None:
        """Print lines of the sweep unless it is quiet."""
        for line in lines:
            say(line, self.quiet)
        self._since = time.monotonic()

    def _watch(self) -> None:
        pause = _PAUSE
        while not self._ended.wait(pause):
            began = time.monotonic()
            line = self._describe()
            ended = time.monotonic()
            pause = max(_PAUSE, _SPARING * (ended - began))
            self._draw(line)
            is_news = line not in ("", self._said)
            if is_news and not is_terminal(sys.stdout) and ended - self._since >= self._silence:
                self.print(line)
                self._said = line
                self._silence = min(2 * self._silence, _LONGEST_SILENCE)

    def _draw(self, line: str) -> None:
        """Draw the living line in place of what was there, if this is a terminal."""
        columns = find_width(sys.stdout)
        if columns is not None and not self.quiet:
            # A line that fills the last column would be continued below, where it could not be erased.
            sys.stdout.write(clear_line(sys.stdout) + fit(line, columns - 1))
            sys.stdout.flush()


class NetworkCount:
    """Counts the networks of jobs that are waiting, from what their processes have written."""

    def __init__(self, waiting: list[Config]) -> None:
        from bnlab.harness.artifacts.run import Run  # with torch

        self._waiting = waiting
        self._names = {Run(config).id for config in waiting}
        self._started = time.monotonic()
        # Shares of the training of each network: which this sweep found, and which have been reached.
        self._found: dict[str, float] = {}
        self._reached: dict[str, float] = {}
        # When each network was first seen to be made, and how long those took that have ended, were they made whole.
        self._began: dict[str, float] = {}
        self._durations: list[float] = []
        self._most_at_a_time = 1
        self._ended: set[str] = set()

    def describe(self) -> str:
        """Write the line: networks that are done, the time that is left, and those that are trained or measured now."""
        from bnlab.harness.artifacts.run import Run
        from bnlab.harness.done import list_waiting, locate_failure_of

        # A job that has failed is done for this sweep, but `list_waiting` keeps it for the next one.
        self._waiting = [
            config for config in list_waiting(self._waiting) if not locate_failure_of(Run(config)).exists()
        ]
        left = {Run(config).id: Run(config) for config in self._waiting}
        progress = {name: read_progress(run.folder) for name, run in left.items()}
        current = {name: each for name, each in progress.items() if each is not None}

        now = time.monotonic()
        for name, each in current.items():
            self._began.setdefault(name, now)
            # The first progress that is seen of a network is of its training, and says where that was resumed.
            self._found.setdefault(name, each.resumed_at)
            # Several jobs may measure one network, which has no progress between two of them.
            self._reached[name] = max(each.share, self._reached.get(name, 0.0))
        ended = self._names - left.keys()
        for name in ended - self._ended:
            if name in self._began:
                self._durations.append((now - self._began[name]) / (1 - self._found[name]))
        self._ended = ended

        self._most_at_a_time = max(self._most_at_a_time, len(current))
        words = [f"{len(ended):,} of {_count_networks(len(self._names))}{self._describe_time(now, current)}"]
        words += [f"{name} {each.words}" for name, each in current.items()]
        if not ended and not current and not self._reached:
            words.append("starting")
        return " · ".join(words)

    def _describe_time(self, now: float, current: Mapping[str, Progress]) -> str:
        """Say how long the rest of the sweep takes if networks take as long as those that have ended.

        Nobody knows what measuring takes before one has. Until then it is the time that is left of training, and
        nothing while a network is measured.
        """
        from bnlab.harness.artifacts.training_runner import format_seconds

        took = now - self._started
        if took < _SOON:
            return ""
        rest = self._names - self._ended
        if not rest:
            return ""  # all are made, and tables come next
        what = ""
        # Short networks are hardly ever seen, or late.
        is_seen = 2 * len(self._durations) > len(self._ended) and self._durations[-1] > _LONG
        if self._ended and is_seen:
            left = self._schedule(now, rest, current)
        elif self._ended:
            left = took / len(self._ended) * len(rest)
        elif any(each.share == 1 for each in current.values()):
            return ""
        else:
            # What an earlier sweep had trained took none of this time.
            made = sum(self._reached.values()) - sum(self._found.values())
            if made <= 0:
                return ""
            left = took / made * (len(self._names) - sum(self._reached.values()))
            what = " of training"
        return "" if left < _SOON else f", about {format_seconds(left)}{what} left"

    def _schedule(self, now: float, rest: Collection[str], current: Mapping[str, Progress]) -> float:
        """Compute the seconds until all of the rest are made, as many at a time as now."""
        whole = sum(self._durations) / len(self._durations)
        running = [max(0.0, whole * (1 - self._found[name]) - (now - self._began[name])) for name in current]
        waiting = [whole] * (len(rest) - len(current))
        # Between two networks a process has none that is seen.
        together = (sum(running) + sum(waiting)) / min(self._most_at_a_time, len(rest))
        return max([together, *running, *waiting[:1]])


def _count_networks(count: int) -> str:
    return "1 network" if count == 1 else f"{count:,} networks"
