"""Measure everything, or the parts that are named, and write the tables: python -m benchmarks [PART ...]."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.timing import THREADS, Result
from bnlab.memory import keep_freed_memory

PARTS = (
    "start", "recording", "self_tuned", "training", "sweep", "population", "large", "shared", "moments", "replay",
    "scaling",
)  # fmt: skip
_README = Path(__file__).with_name("README.md")


def main() -> None:
    keep_freed_memory()
    for part in sys.argv[1:] or PARTS:
        module = importlib.import_module(f"benchmarks.{part}")
        threads = getattr(module, "THREADS", THREADS)
        torch.set_num_threads(threads)
        table = _table(module.results())
        print(table, flush=True)
        begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
        before, _, rest = _README.read_text().partition(begin)
        _README.write_text(
            f"{before}{begin}\n{_machine(module.ROUNDS, threads)}\n\n{table}\n{end}{rest.partition(end)[2]}"
        )


def _machine(rounds: int, threads: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "fvcore", "greenlet"))
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), threads: {threads}, Python {platform.python_version()}, "
        f"{packages}; medians of {rounds} rounds in alternation, nothing else running."
    )


def _table(found: list[Result]) -> str:
    lines = [
        "| what | side | seconds | against | seconds | ratio | at most | note |",
        "|---|---|--:|---|--:|--:|--:|---|",
    ]
    for r in found:
        limit = "" if r.limit is None else f"{r.limit:g}{' ✗' if r.ratio > r.limit else ''}"
        times = f"{r.side} | {r.seconds:.3g} | {r.against} | {r.reference:.3g} | {r.ratio:.3f}"
        lines.append(f"| {r.what} | {times} | {limit} | {r.note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
