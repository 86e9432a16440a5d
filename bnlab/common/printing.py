"""What is printed: how wide a terminal is, letters that an output cannot show, and times."""

import io
import shutil
import sys
from typing import TextIO


def find_width(stream: TextIO) -> int | None:
    """Find how many columns a terminal has; None for a file or a program that reads, whose lines have no end."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def escape_unprintable() -> None:
    """Let standard output print letters that its encoding lacks as escapes, as standard error does: `\\xd7` for `×`.

    The output is not UTF-8 in a container without a locale, or in a pipe on Windows. Python would raise
    UnicodeEncodeError, and the command end without its result.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a program may have put another kind of object there
        sys.stdout.reconfigure(errors="backslashreplace")


def format_seconds(seconds: float) -> str:
    """Format a duration as a reader needs it: `42 s`, `7 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
