"""`bnlab explain`: what a code of the doctor's means, or which codes there are."""

from __future__ import annotations

import argparse

from bnlab.doctor.codes import explain, read_explanations


def run(arguments: argparse.Namespace) -> int:
    """Print what a code means, or all codes; 0."""
    if arguments.code is not None:
        print(explain(arguments.code))
        return 0

    for explanation in read_explanations().values():
        heading = explanation.partition("\n")[0]
        print(heading.replace(": ", "  ", 1))
    return 0
