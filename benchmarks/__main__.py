"""Measure everything, or the parts that are named, and write the tables: python -m benchmarks [PART ...] [--cuda].

A part is a function of the device, which gives its sides to `timing.alternate` and compares them, a row each.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.timing import HEADING
from bnlab.memory import keep_freed_memory

# The module of each part, and the threads that it computes with.
PARTS = {
    "start": ("commands", 2),
    "recording": ("training", 1),
    "watch": ("training", 1),
    "training": ("training", 2),
    "sweep": ("commands", 2),
    "population": ("exact", 1),
    "visits": ("exact", 1),
    "large": ("exact", 2),
    "shared": ("exact", 2),
    "replay": ("replay", 2),
    "scaling": ("exact", 2),
    "doctor": ("doctor", 1),
}
_ON_CUDA = ("visits", "population", "recording", "watch", "training", "doctor")
_README = Path(__file__).with_name("README.md")
_PACKAGES = ("torch", "numpy", "fvcore", "greenlet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # Without any part argparse looks for the empty list among the choices.
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--cuda", action="store_true", help=f"print {', '.join(_ON_CUDA)} of an accelerator instead")
    arguments = parser.parse_args()

    # As sweeps do: otherwise mapping fresh memory takes more time than the statistics that are measured.
    keep_freed_memory()
    usual = _ON_CUDA if arguments.cuda else PARTS
    for part in arguments.parts or usual:
        name, threads = PARTS[part]
        torch.set_num_threads(threads)
        module = importlib.import_module(f"benchmarks.{name}")
        measure = getattr(module, f"measure_{part}")

        lines = [HEADING]
        for result in measure("cuda" if arguments.cuda else "cpu"):
            lines.append(result.write_row())
            print(lines[-1], flush=True)
        # The tables of README.md are of a CPU; what an accelerator takes is only printed.
        if not arguments.cuda:
            table = "\n".join(lines)
            _replace_section(part, f"{_describe_machine(module.ROUNDS, threads)}\n\n{table}")


def _replace_section(part: str, text: str) -> None:
    """Put the results of a part in the place of its last ones."""
    begin = f"<!-- {part} -->"
    end = f"<!-- end of {part} -->"
    before, _, rest = _README.read_text(encoding="utf-8").partition(begin)
    _, _, behind = rest.partition(end)
    _README.write_text(f"{before}{begin}\n{text}\n{end}{behind}", encoding="utf-8")


def _describe_machine(rounds: int, threads: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), threads: {threads}, Python {platform.python_version()}, "
        f"{packages}; medians of {rounds} rounds in alternation, nothing else running."
    )


if __name__ == "__main__":
    main()
