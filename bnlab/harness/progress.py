"""What processes of a sweep say while they train: lines, and for each network a file on how far it has come.

Several processes may share a terminal. The command that was started draws one line at its end, which lives, from the
files (`bnlab.harness.lab.watching`); what others say is written at once, in place of that line, which is drawn again
below.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple, TextIO

CLEAR = "\r\x1b[2K"
"""What a terminal is sent to begin its line again."""
_SECONDS = 1.0  # between two times that a file is written
_FILE = "progress.json"


def is_terminal(stream: TextIO | None) -> bool:
    """Find out whether a line in this stream can be drawn again."""
    if stream is None:
        return False
    # TERM=dumb stands for a terminal that knows no escape sequences.
    return is_notebook(stream) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def is_notebook(stream: TextIO) -> bool:
    """Find out whether this stream is the output of a cell in a notebook, which is no terminal by its own account."""
    return type(stream).__module__.startswith("ipykernel.")


def clear_line(stream: TextIO) -> str:
    """What begins the line of a terminal or a notebook again."""
    if is_notebook(stream):  # which knows no sequence that erases: spaces take the place of what was there
        return f"\r{' ' * shutil.get_terminal_size().columns}\r"
    return CLEAR


def find_width(stream: TextIO | None) -> int | None:
    """Find how many columns a terminal has; None for a file or a program that reads, whose lines have no end."""
    return shutil.get_terminal_size().columns if is_terminal(stream) else None


def fit(line: str, columns: int) -> str:
    """Cut a line that is too long between two words: half a number would be read as another one.

    >>> fit("3 of 12 networks, loss 0.125", 26)
    '3 of 12 networks, loss …'
    """
    if len(line) <= columns:
        return line
    kept, _, _ = line[: columns - 1].rpartition(" ")
    return f"{kept} …"


def say(line: str, quiet: bool = False) -> None:
    """Print a line unless the sweep is quiet."""
    if not quiet:
        _write(line, sys.stdout)


def say_off_terminal(line: str, quiet: bool) -> None:
    """Print a line for a file or a program that reads; on a terminal the line that lives says it."""
    if not is_terminal(sys.stdout):
        say(line, quiet)


def say_problem(line: str) -> None:
    """Print what somebody should know, as standard error."""
    _write(line, sys.stderr)


def _write(line: str, stream: TextIO | None) -> None:
    if stream is None:
        return
    start = clear_line(stream) if is_terminal(stream) else ""
    stream.write(f"{start}{line}\n")  # in one piece: other processes write too
    stream.flush()


class Progress(NamedTuple):
    """How far a network has come.

    Attributes:
        words: for people.
        share: of its training that is done.
        resumed_at: share that an earlier process had done, so that this one took no time for it.

    """

    words: str
    share: float
    resumed_at: float = 0.0


class Reporter:
    """Writes how far the training of a network has come into its folder, at most once a second."""

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        self._folder = folder
        self._first = step
        self._steps = steps
        self._began = self._written = time.monotonic()

    def report(self, step: int, loss: float) -> None:
        """Take note of an update; the loss is that of the last one that has been read."""
        now = time.monotonic()
        if now - self._written < _SECONDS:
            return
        self._written = now
        # Updates that were made before a kill are not among those of this process.
        rate = (step - self._first) / (now - self._began)
        words = f"step {step:,}/{self._steps:,} loss {loss:.3f} {rate:,.3g}/s"
        write_progress(self._folder, Progress(words, step / self._steps, self._first / self._steps))


def write_progress(folder: Path, progress: Progress) -> None:
    """Write how far a network has come; a training does not end because that cannot be written."""
    # Not by `common.files.write_text`, which waits for the disk: `read_progress` passes over half a file.
    with contextlib.suppress(OSError):
        (folder / _FILE).write_text(json.dumps(progress), encoding="utf-8")


def read_progress(folder: Path) -> Progress | None:
    """Read how far a network has come; None unless it is trained or measured now."""
    try:
        return Progress(*json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or only half of it
        return None


def remove_progress(folder: Path) -> None:
    """Remove the file: nobody trains or measures the network any more."""
    with contextlib.suppress(OSError):
        (folder / _FILE).unlink()
