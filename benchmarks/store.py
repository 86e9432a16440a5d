"""How commands grow with the networks in a folder of results, 1,000, 3,000 and 10,000, each in a fresh process.

One network is trained and measured. All others are simulated: each has a copy of its files, with its own settings and
its own name in the measured rows, and a job runs on it, finds everything there and writes its request. So files, names
and tables are those of real networks; weights and numbers are the same in all of them.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from os import devnull
from pathlib import Path

import pandas as pd
import yaml

from benchmarks.timing import Result
from bnlab.files import write_text
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.jobs import execute, prepare
from bnlab.harness.measurements import find_measurement
from bnlab.harness.requests import find_rows
from bnlab.harness.schema import read_frame, write_rows
from bnlab.lab.compose import plan_jobs

ROUNDS = 3
_SEEDS = (1, 3, 10)
_COMMON = ("steps=8", "model.width=4", "momentum=[0.01,0.1,0.5]", "estimator=[ema,exact]", "threads=1")
_SWEPT = (
    "batch_size=16,24,32,48,64,96,128,192,256,384",
    "optimizer.lr=0.01,0.02,0.03,0.05,0.07,0.1,0.15,0.2,0.3,0.5",
)
_SWEPT_TOO = "optimizer.weight_decay=0,1e-5,2e-5,5e-5,1e-4,2e-4,5e-4,1e-3,2e-3,5e-3"
_BNLAB = ("-m", "bnlab")


def measure() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        for seeds in _SEEDS:
            words = [*_COMMON, *_SWEPT, _SWEPT_TOO, "name=store", f"seed=range({seeds})", f"results={folder}"]
            networks = simulate(words)
            yield from _time_commands(networks, words, folder)


def simulate(words: Sequence[str]) -> int:
    """Make all networks of a sweep that are not there; the first of them is trained.

    Returns:
        Their number.
    """
    configs = plan_jobs(words, multirun=True).configs
    with open(devnull, "w") as nowhere, redirect_stdout(nowhere):
        prepare(configs[:1])
        execute(configs[0])
        first = Run(configs[0])
        rows = {}
        for path in first.folder.glob("measurements/*/*.parquet"):
            rows[path.parent.name, path.name] = read_frame(path)
        for config in configs[1:]:
            if not Run(config).finished:
                _copy(first, rows, config)
    return len(configs)


def _copy(first: Run, rows: dict[tuple[str, str], pd.DataFrame], config: Config) -> None:
    """Leave what a network of this configuration leaves; `rows` are the first one's, by table and file."""
    run = Run(config)
    shutil.copytree(first.folder, run.folder, ignore=shutil.ignore_patterns("measurements"))
    write_text(run.folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    for (table, file), frame in rows.items():
        path = find_rows(Path(config.results), run.id, table) / file
        write_rows(path, find_measurement(table).table, frame.assign(run=run.id))
    execute(config)


def _time_commands(networks: int, words: Sequence[str], folder: str) -> Iterator[Result]:
    """Time all commands; an experiment on a hundred of the networks is one of the many of a folder of results."""
    results = f"results={folder}"
    what = f"{networks:,} networks"
    sweep = (*_BNLAB, "sweep", "-m", *words)
    yield _time(what, "sweep, tables put together", sweep, 1, None, "; once, after the last network")

    part = (*_BNLAB, "sweep", "-m", *_COMMON, *_SWEPT, "optimizer.weight_decay=0", "seed=0", "name=part", results)
    _run_python(part)
    commands = {
        "runs list": (*_BNLAB, "runs", "list", results),
        "load": ("-c", f"import bnlab.harness; bnlab.harness.load('store', {folder!r})"),
        "sweep, nothing missing": sweep,
        "report of 100 of them": (*_BNLAB, "report", "name=part", results),
        "report of all": (*_BNLAB, "report", "name=store", results),
    }
    for side, command in commands.items():
        yield _time(what, side, command, ROUNDS, 1.0)


def _time(what: str, side: str, command: Sequence[str], rounds: int, limit: float | None, note: str = "") -> Result:
    """Compare the processor's seconds, which do not depend on its other work, with ten; the note has all seconds."""
    measured = [_run_python(command) for _ in range(rounds)]
    processor = statistics.median(each for each, _ in measured)
    seconds = statistics.median(each for _, each in measured)
    return Result(what, side, processor, "10 s", 10.0, limit, f"wall {seconds:.1f} s{note}")


def _run_python(words: Sequence[str]) -> tuple[float, float]:
    """Run Python with these words; return the seconds of the processor, and all."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds
