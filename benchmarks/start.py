"""How long importing bnlab, a sweep's help, plan and second run, and reports take, in fresh processes."""

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
            "imports": lambda: _python("-c", "import bnlab.lab.compose, bnlab.harness.planning"),
            "plan": lambda: _python(*_SWEEP, "seed=range(60)", "dry_run=true", f"results={folder}"),
            "sweep": lambda: _python(*_SWEEP, f"results={folder}"),
            "report": lambda: _python("-m", "bnlab", "report", "experiment=quickstart", "results=results/reference"),
        },
        ROUNDS,
    )
    added = median["bnlab"] - median["torch"]
    plan_alone = median["plan"] - median["imports"]
    return [
        Result(
            "import bnlab", "with bnlab", median["bnlab"], "torch alone", median["torch"], None, f"adds {added:.2f} s"
        ),
        Result("sweep --help", "help", median["help"], "2 s", 2.0, 1.0),
        Result("dry_run of 20 networks beside 100", "plan", plan_alone, "2 s", 2.0, 1.0, "beyond the imports"),
        Result("sweep of 100 networks that are there", "sweep", median["sweep"], "6 s", 6.0, 1.0),
        Result("report of quickstart", "report", median["report"], "8 s", 8.0, 1.0),
    ]


def _python(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
