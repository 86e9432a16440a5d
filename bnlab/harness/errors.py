"""Errors of the harness: a user's mistake, which commands print and exit 2 for, and a failure of a user's own code."""

from __future__ import annotations

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

# Folders of bnlab and the standard library, which Homebrew's Python names by a link while modules lie behind it.
_NOT_OF_USER = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")), Path(os.__file__).parent)
_INSTALLED = {"site-packages", "dist-packages"}  # folders of packages, of any environment


class UserError(ValueError):
    """A user's mistake: what was found and what to do, in one or two lines; shown without a traceback."""


class NoRows(UserError):
    """Nothing of what is asked for has been measured: it is to be swept."""


class JobError(UserError):
    """A failure that stops one job of a sweep and leaves the others alone."""


class TimeLimit(BaseException):
    """The time of a job is up; no Exception, which a measurement would take for a failure of its own."""


def suggest(name: object, known: Iterable[object]) -> str:
    """Say which of the known names was meant, if one is like this one; otherwise say all of them.

    >>> suggest("emma", ["cumulative", "ema"])
    'did you mean ema?'
    >>> suggest("nothing", ["cumulative", "ema"])
    'must be one of cumulative, ema'
    """
    names = [str(each) for each in known]
    close = find_close(name, names)
    return f"did you mean {close}?" if close else f"must be one of {', '.join(names)}"


def find_close(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the known name that is most like this one, in small letters or large; None if none is like it.

    `cutoff` is the least likeness, from 0 to 1 for equal names.
    """
    by_letters = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(name).lower(), by_letters, n=1, cutoff=cutoff)
    return by_letters[close[0]] if close else None


def find_network(beginning: str, names: Iterable[str], where: str) -> str:
    """Find the one network that is called so, or whose name alone begins so; UserError unless there is one."""
    known = list(names)
    # The whole name comes first: seed_1 is a network, and also the beginning of seed_10.
    if beginning in known:
        return beginning
    matching = [name for name in known if name.startswith(beginning)]
    if len(matching) == 1:
        return matching[0]
    networks = f"{len(matching)} networks, such as {matching[0]}," if matching else "no network"
    raise UserError(f"{beginning}: names {networks} {where}")


def where_raised(error: BaseException) -> str:
    """`file:line: Type: message`, of the last line of the user's code; without one `Type: message`."""
    # In one line, and without the colon that an error with an empty message leaves.
    message = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    lines = list_own_lines(error)
    if not lines:
        return message
    file, line = lines[-1]
    return f"{shorten(file)}:{line}: {message}"


def list_own_lines(error: BaseException) -> list[tuple[Path, int | None]]:
    """The lines of the user's code on the way to where an error was raised."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    # A file with a syntax error was never run, and is in no frame.
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    lines = []
    for name, line in frames:
        # Names such as <string> are those of no file.
        if not name.startswith("<") and is_of_user(Path(name)):
            lines.append((Path(name), line))
    return lines


def is_of_user(file: Path) -> bool:
    """Return whether a file is the user's: not bnlab's, the standard library's or an installed package's."""
    is_installed = not _INSTALLED.isdisjoint(file.parts)
    return not is_installed and not any(file.is_relative_to(folder) for folder in _NOT_OF_USER)


def shorten(path: Path) -> Path:
    """Write a path as seen from the current folder, if it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
