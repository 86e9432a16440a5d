"""Score a tool on public reports and planted faults: python -m benchmarks.doctor_benchmark [WORD ...].

Without arguments all problems on committed networks are asked about; results.csv and results.md beside this file are
written again after each of them. With words only problems whose part or name holds one of them are asked about, and
nothing is written. `--fresh N` plants faults in N freshly trained networks as well. `--tool PACKAGE.MODULE:FUNCTION`
scores another tool.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from benchmarks.doctor_benchmark import parts
from benchmarks.doctor_benchmark.planted import Wants, list_fresh, list_frozen
from benchmarks.doctor_benchmark.problem import Problem, Tool
from benchmarks.doctor_benchmark.reports import REPORTS
from benchmarks.doctor_benchmark.scoring import Row, ask, grade, write_rows, write_summary

_RESULTS = Path(__file__).with_name("results.csv")
_OWN = "benchmarks.doctor_benchmark.doctor:ask_doctor"

_EXPLANATION = (
    "*Strictly right*: the verdict and the first cause are; of a healthy network, no alarm. *Leniently*: the verdict "
    "is, or a right cause stands behind others or in a note. Counts are of problems; shares and their intervals (of "
    "95%, Wilson's) are over networks, each of which counts once."
)


def main(words: Sequence[str] | None = None) -> None:
    """Ask, grade, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--fresh", type=int, default=0, metavar="N")
    parser.add_argument("--tool", default=_OWN, metavar="PACKAGE.MODULE:FUNCTION")
    parser.add_argument("--train-networks", action="store_true", help="train networks of reports that are missing")
    arguments = parser.parse_args(words)

    torch.set_num_threads(1)
    parts.NETWORKS.trains = arguments.train_networks
    tool = _load_tool(arguments.tool)
    rows = []

    def wants(part: str, name: str) -> bool:
        return not arguments.words or any(word in f"{part}: {name}" for word in arguments.words)

    for problem in _list_problems(arguments.fresh, wants):
        rows.append(grade(problem, ask(problem, tool)))
        print(write_rows(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        # The results beside this file are those of bnlab's doctor on all problems.
        if not arguments.words and arguments.tool == _OWN:
            write_results(rows)
    print(write_summary(rows))


def _list_problems(fresh: int, wants: Wants) -> Iterator[Problem]:
    yield from (problem for problem in REPORTS if wants(problem.part, problem.name))
    yield from list_frozen(wants)
    yield from list_fresh(fresh, wants)


def _load_tool(path: str) -> Tool:
    module, _, name = path.partition(":")
    tool: Tool = getattr(importlib.import_module(module), name)
    return tool


def write_results(rows: Sequence[Row]) -> None:
    """Write all answers as a table of values, and the page that sums them up."""
    pd.DataFrame([asdict(row) for row in rows]).to_csv(_RESULTS, index=False)
    about = f"bnlab's doctor; Python {platform.python_version()}, torch {version('torch')}, one thread."
    reports = [row for row in rows if "planted" not in row.part]
    planted = [row for row in rows if "planted" in row.part]
    missed = [row for row in planted if not row.is_strict]
    sections = [
        "# What the doctor gets",
        f"Made by `python -m benchmarks.doctor_benchmark`. {about}",
        _EXPLANATION,
        write_summary(rows),
        "## Reports and healthy networks",
        write_rows(reports),
    ]
    if planted:
        sections += ["## Planted faults that were not strictly right", write_rows(missed) if missed else "None."]
    _RESULTS.with_suffix(".md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
