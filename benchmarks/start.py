"""How long importing bnlab, asking the sweep for help and composing the answers take, in fresh processes."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Result, alternate

ROUNDS = 9
_WAIT = 15.0  # seconds that somebody waits for a page


def results() -> list[Result]:
    median = alternate(
        {
            "torch": lambda: _python("-c", "import torch"),
            "bnlab": lambda: _python("-c", "import torch, bnlab"),
            "torch and hydra": lambda: _python("-c", "import torch, hydra"),
            "help": lambda: _python("-m", "experiments.sweep", "--help"),
            "answers": lambda: _python("-m", "experiments.answers"),
            "report": lambda: _python("-m", "experiments.report"),
        },
        ROUNDS,
    )
    added = median["bnlab"] - median["torch"]
    return [
        Result(
            "import bnlab", "with bnlab", median["bnlab"], "torch alone", median["torch"], None, f"adds {added:.2f} s"
        ),
        Result("sweep --help", "help", median["help"], "import torch, hydra", median["torch and hydra"], 1.5),
        *(
            Result(f"{command}, reference tables", command, median[command], f"{_WAIT:g} s", _WAIT, 1.0)
            for command in ("answers", "report")
        ),
    ]


def _python(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
