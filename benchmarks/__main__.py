"""Measure everything, or the parts that are named, and write the tables: python -m benchmarks [PART ...]."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.timing import HEADING, THREADS
from bnlab.memory import keep_freed_memory

PARTS = (
    *("start", "recording", "training", "sweep", "population", "large"),
    *("shared", "moments", "replay", "scaling", "doctor"),
)
_README = Path(__file__).with_name("README.md")
_PACKAGES = ("torch", "numpy", "fvcore", "greenlet")


def main() -> None:
    keep_freed_memory()
    for part in sys.argv[1:] or PARTS:
        module = importlib.import_module(f"benchmarks.{part}")
        threads = getattr(module, "THREADS", THREADS)
        torch.set_num_threads(threads)

        lines = [HEADING]
        for result in module.measure():
            lines.append(result.write_row())
            print(lines[-1], flush=True)
        table = "\n".join(lines)
        _replace_section(part, f"{_describe_machine(module.ROUNDS, threads)}\n\n{table}")


def _replace_section(part: str, text: str) -> None:
    """Put the results of a part in the place of its last ones."""
    begin = f"<!-- {part} -->"
    end = f"<!-- end of {part} -->"
    before, _, rest = _README.read_text().partition(begin)
    _, _, behind = rest.partition(end)
    _README.write_text(f"{before}{begin}\n{text}\n{end}{behind}")


def _describe_machine(rounds: int, threads: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), threads: {threads}, Python {platform.python_version()}, "
        f"{packages}; medians of {rounds} rounds in alternation, nothing else running."
    )


if __name__ == "__main__":
    main()
