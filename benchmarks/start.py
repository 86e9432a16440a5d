"""How long importing bnlab, a sweep's help, its second run, and a report take, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

from benchmarks.timing import Result, alternate

ROUNDS = 3
_BNLAB = ("-m", "bnlab")
_SWEEP = (*_BNLAB, "sweep", "-m", "batch_size=64,256", "seed=range(50)", "steps=2", "model.width=4")


def measure() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        sweep = (*_SWEEP, f"results={folder}")
        _run_python(*sweep)
        commands = {
            "torch alone": ("-c", "import torch"),
            "with bnlab": ("-c", "import torch, bnlab"),
            "sweep --help": (*_BNLAB, "sweep", "--help"),
            "sweep of 100 networks that are there": sweep,
            "report of quickstart": (*_BNLAB, "report", "experiment=quickstart", "results=results/reference"),
        }
        timed = alternate("a process", ROUNDS, {name: partial(_run_python, *words) for name, words in commands.items()})

    added = timed.seconds["with bnlab"] - timed.seconds["torch alone"]
    yield timed.compare("with bnlab", "torch alone", note=f"adds {added:.2f} s")
    yield timed.compare("sweep --help", 2.0, 1.0)
    yield timed.compare("sweep of 100 networks that are there", 6.0, 1.0)
    yield timed.compare("report of quickstart", 8.0, 1.0)


def _run_python(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
