"""Make the checks of this folder, all of them or those that are named; exit 1 where one finds something."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CHECKS = sorted({path.stem for path in Path(__file__).parent.glob("[a-z]*.py")} - {"outcomes"})


def main() -> int:
    """Make the checks that the command line names, and print what each has found."""
    parser = argparse.ArgumentParser(prog="python -m tests.checks", description="Compare what is committed.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(CHECKS)}; default: all")
    given = parser.parse_args()
    for name in given.names:
        if name not in CHECKS:
            parser.error(f"{name}: there is no such check")

    # A thread a process, as another check runs beside this one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    is_wrong = False
    for name in given.names or CHECKS:
        began = time.monotonic()
        complaints = [*make_check(name)]
        for complaint in complaints:
            print(f"FAILED {name}.{complaint}")
        print(f"{name}: {len(complaints) or 'nothing'} to mend, {time.monotonic() - began:.1f} s", flush=True)
        is_wrong = is_wrong or bool(complaints)
    return int(is_wrong)


def make_check(name: str) -> Iterator[str]:
    """Make a check; what it finds, a line each, by the function that has found it."""
    module = importlib.import_module(f"tests.checks.{name}")
    for key, function in inspect.getmembers(module, inspect.isfunction):
        if key.startswith("find_") and function.__module__ == module.__name__:
            for complaint in function():
                yield f"{key}: {complaint}"


if __name__ == "__main__":
    sys.exit(main())
