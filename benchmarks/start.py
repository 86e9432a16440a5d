"""How long importing bnlab, the sweep's help, a sweep of what is there and reports take, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from benchmarks.timing import Result, alternate

ROUNDS = 3
_SWEEP = ("-m", "bnlab", "sweep", "-m", "batch_size=64,256", "seed=range(50)", "steps=2", "model.width=4")


def results() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        _python(*_SWEEP, f"results={folder}")
        return _compare(folder)


def _compare(folder: str) -> list[Result]:
    median = alternate(
        {
            "torch": lambda: _python("-c", "import torch"),
            "bnlab": lambda: _python("-c", "import torch, bnlab"),
            "help": lambda: _python("-m", "bnlab", "sweep", "--help"),
            "sweep": lambda: _python(*_SWEEP, f"results={folder}"),
            "report": lambda: _python("-m", "bnlab", "report", "experiment=quickstart", "results=results/reference"),
        },
        ROUNDS,
    )
    added = median["bnlab"] - median["torch"]
    return [
        Result(
            "import bnlab", "with bnlab", median["bnlab"], "torch alone", median["torch"], None, f"adds {added:.2f} s"
        ),
        Result("sweep --help", "help", median["help"], "3 s", 3.0, 1.0),
        Result("sweep of 100 networks that are there", "sweep", median["sweep"], "6 s", 6.0, 1.0),
        Result("report of quickstart", "report", median["report"], "8 s", 8.0, 1.0),
    ]


def _python(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
