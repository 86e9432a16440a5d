"""What a person sees of a sweep: on a terminal one line that lives, elsewhere a line after some silence."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from bnlab.harness.progress import CLEAR, is_terminal, say

_PAUSE = 0.5  # seconds between two looks
_SILENCE = 4.0  # seconds without a line; then one, and the next after twice the time
_LONGEST_SILENCE = 60.0


class Display:
    """Shows in its block what the sweep is doing.

    Drawn by hand: tqdm has bars of one process each, and neither it nor rich knows of lines that other processes write
    on the same terminal.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._describe: Callable[[], str] = str
        self._silence = _SILENCE
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._clear()

    def begin(self, phase: str) -> None:
        """Say from now on that the sweep is in this phase."""
        self.show(lambda: phase)

    def show(self, describe: Callable[[], str]) -> None:
        """Show from now on what `describe` returns; it is asked again and again."""
        self._describe = describe
        self.announce()

    def announce(self) -> None:
        """Take note that there is news, which is said soon."""
        self._silence = _SILENCE

    def print(self, *lines: str) -> None:
        """Print lines of the sweep unless it is quiet."""
        for line in lines:
            say(line, self.quiet)
        self._since = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(_PAUSE):
            if self.quiet:
                continue
            line = self._describe()
            if is_terminal(sys.stdout):
                self._draw(line)
            elif line and time.monotonic() - self._since >= self._silence:
                self.print(line)
                self._silence = min(2 * self._silence, _LONGEST_SILENCE)

    def _draw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns
        sys.stdout.write(CLEAR + line[: width - 1])
        sys.stdout.flush()

    def _clear(self) -> None:
        if is_terminal(sys.stdout) and not self.quiet:
            sys.stdout.write(CLEAR)
            sys.stdout.flush()
