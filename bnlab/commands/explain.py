"""`bnlab explain`: what a code of the doctor's means."""

from __future__ import annotations

import argparse
from typing import Any

from bnlab.doctor.catalogue import explain, list_causes


def add_parser(commands: Any) -> None:
    """Add the command to `commands`, the subparsers of `bnlab`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain", help="what a code of the doctor's means, how it is told, and what to do"
    )
    parser.add_argument("code", nargs="?", help="such as BN102; all codes are listed without one")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation; 0."""
    if arguments.code is None:
        for cause in list_causes():
            print(f"{cause.code}  {cause.title}")
        return 0
    print(explain(arguments.code))
    return 0
