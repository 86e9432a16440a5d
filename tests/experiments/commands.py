"""The real commands, as a user types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
EPOCH = ("epochs=1", "model.width=8", "model.depth=2", "evaluate_at=[0.5,1.0]")
"""A small network on all real digits."""
SWEEP = ("batch_size=32,256", "seed=0,1", "-m", *EPOCH, "momentum=[0.01,0.1]", "estimator=[ema,cumulative,exact]")
"""Four of them."""

Done = subprocess.CompletedProcess[str]


class Called(NamedTuple):
    """What a command in this process returned and printed."""

    code: int
    out: str
    err: str


Call = Callable[..., Called]
Write = Callable[..., None]


def start(command: str, *words: str, path: Path | None = None) -> subprocess.Popen[str]:
    """`python -m bnlab <command> words...` from the repository root, one thread, `path` importable."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path or "")}
    return subprocess.Popen(
        [sys.executable, "-m", "bnlab", command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
        env=found,
    )


def run(command: str, *words: str, path: Path | None = None, expect: int = 0) -> Done:
    """`start` to its end, with the exit code that is expected."""
    process = start(command, *words, path=path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def list_trained(out: str) -> list[str]:
    """The networks that a sweep says it has trained, with repetitions."""
    return sorted(re.findall(r"(\w{10}/seed_\d+)  trained in", out))


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, without Hydra's own notes and locks."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".lock", ".yaml"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
