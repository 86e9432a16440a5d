"""Running a command: how all of them are called, exit codes, and no traceback for what a user may do.

Every command takes settings as key=value, `--help`, and no other options but the sweep's `-m`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bnlab.common.files import write_text
from bnlab.common.printing import escape_unprintable, find_width
from bnlab.harness.errors import UserError
from bnlab.harness.lab.registry import import_shipped
from bnlab.harness.records import locate_commands, read_commands

if TYPE_CHECKING:
    import pandas as pd

_LEAST_MEMORY = 1_600_000_000  # bytes of addresses


def run_command(
    command: Callable[[list[str]], int], words: list[str], usage: str, options: tuple[str, ...] = (), resumes: str = ""
) -> int:
    """Run a command with the words of the command line; 2 for a user's mistake, 130 for Ctrl-C, each with its line.

    `resumes` is what the line of Ctrl-C says of going on. The command imports what takes seconds by itself, so that
    Ctrl-C in that time is caught here too.
    """
    escape_unprintable()
    try:
        # Before modules of the caller's own can be found: a clone in the current folder has a module of this name too.
        import_shipped()
        # An installed command does not have the current folder on its path, where the user's modules lie.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())

        if {"-h", "--help"} & {*words}:
            print(usage)
            return 0
        for word in words:
            if word.startswith("-") and word.partition("=")[0] not in options:
                known = f"{', '.join(options)} and --help" if options else "--help"
                print(f"error: {word}: no such option; there is {known}", file=sys.stderr)
                return 2
        return command(words)
    except KeyboardInterrupt:
        print(f"\nstopped{resumes}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as by `| head`, see `bnlab.cli.main`
        raise
    except OSError as error:
        print(f"error: {error}; what is finished is kept", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: out of memory; what is finished is kept", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def require_memory() -> None:
    """Raise UserError where the shell allows a process less memory than torch needs, which crashes in ways of its own.

    Measured with two threads: with 1.4 GB no thread can be started, with 1.5 GB sweeps of small networks go through.
    """
    if sys.platform == "win32":
        return
    # Not at the top, because Windows has no such module.
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed not in (resource.RLIM_INFINITY, -1) and allowed < _LEAST_MEMORY:
        raise UserError(
            f"memory: a sweep needs {_LEAST_MEMORY / 1e9:.1f} GB in each process, most of it for torch, and the shell "
            f"allows {allowed / 1e9:.1f} GB (ulimit -v); allow more, by ulimit -v unlimited"
        )


def print_table(frame: pd.DataFrame) -> None:
    """Print a table; on a terminal that is narrower, in several parts, so that no number is cut at its edge."""
    print(format_table(frame))


def format_table(frame: pd.DataFrame) -> str:
    """Write a table as `print_table` prints it."""
    columns = find_width(sys.stdout)
    # Without `float_format`, a single small or large number would give its whole column exponents.
    return str(frame.to_string(index=False, na_rep="", float_format="{:.10g}".format, line_width=columns))


def write_command(command: str, word: str, results: Path) -> str:
    """Write a bnlab command as it is typed, with one word and, unless it is the default, the folder of results."""
    words = ["bnlab", command, word]
    if results != Path("results"):
        words.append(f"results={results}")
    return shlex.join(words)


def keep_command(folder: Path, command: str) -> None:
    """Put a command behind those that have made the tables of an experiment before, for pages."""
    with FileLock(folder / "command.lock"):  # parts of a sweep may begin at once
        # A command that is run once more moves to the end, as the latest.
        others = [other for other in read_commands(folder) if other != command]
        lines = "\n".join([*others, command])
        write_text(locate_commands(folder), f"{lines}\n")
