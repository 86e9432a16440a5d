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
from collections.abc import Sequence
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
_LIMIT = 10.0  # seconds
_SEEDS = (1, 3, 10)
_COMMON = ("steps=8", "model.width=4", "momentum=[0.01,0.1,0.5]", "estimator=[ema,exact]", "threads=1", "name=store")
_SWEPT = (
    "batch_size=16,24,32,48,64,96,128,192,256,384",
    "optimizer.lr=0.01,0.02,0.03,0.05,0.07,0.1,0.15,0.2,0.3,0.5",
    "optimizer.weight_decay=0,1e-5,2e-5,5e-5,1e-4,2e-4,5e-4,1e-3,2e-3,5e-3",
)
_FIRST = "optimizer.weight_decay=0"


def results() -> list[Result]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seeds in _SEEDS:
            words = [*_COMMON, *_SWEPT, f"seed=range({seeds})", f"results={folder}"]
            networks = simulate(words)
            rows += _compare(networks, words, folder)
    return rows


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
        rows = _read_rows(first)
        for config in configs[1:]:
            if not Run(config).finished:
                _copy(first, rows, config)
    return len(configs)


def _read_rows(run: Run) -> dict[tuple[str, str], pd.DataFrame]:
    """Read the measured rows of a network, by table and file."""
    paths = run.folder.glob("measurements/*/*.parquet")
    return {(path.parent.name, path.name): read_frame(path) for path in paths}


def _copy(first: Run, rows: dict[tuple[str, str], pd.DataFrame], config: Config) -> None:
    """Leave what a network of this configuration leaves."""
    run = Run(config)
    shutil.copytree(first.folder, run.folder, ignore=shutil.ignore_patterns("measurements"))
    write_text(run.folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    for (table, file), frame in rows.items():
        path = find_rows(Path(config.results), run.id, table) / file
        write_rows(path, find_measurement(table).table, frame.assign(run=run.id))
    execute(config)


def _compare(networks: int, words: Sequence[str], folder: str) -> list[Result]:
    """Measure all commands; an experiment on a hundred of the networks is one of the many of a folder of results."""
    sweep = ("-m", "bnlab", "sweep", "-m", *words)
    part = (
        "-m",
        "bnlab",
        "sweep",
        "-m",
        *_COMMON[:-1],
        *_SWEPT[:2],
        _FIRST,
        "seed=0",
        "name=part",
        f"results={folder}",
    )
    what = f"{networks:,} networks"
    processor, seconds = _measure(sweep)
    note = f"wall {seconds:.1f} s; once, after the last network"
    rows = [Result(what, "sweep, tables put together", processor, "10 s", _LIMIT, None, note)]
    _measure(part)
    sides = {
        "runs list": ("-m", "bnlab", "runs", "list", f"results={folder}"),
        "load": ("-c", f"import bnlab.harness; bnlab.harness.load('store', {folder!r})"),
        "sweep, nothing missing": sweep,
        "report of 100 of them": ("-m", "bnlab", "report", "name=part", f"results={folder}"),
        "report of all": ("-m", "bnlab", "report", "name=store", f"results={folder}"),
    }
    for side, command in sides.items():
        measured = [_measure(command) for _ in range(ROUNDS)]
        processor = statistics.median(each for each, _ in measured)
        seconds = statistics.median(each for _, each in measured)
        rows.append(Result(what, side, processor, "10 s", _LIMIT, 1.0, f"wall {seconds:.1f} s"))
    return rows


def _measure(words: Sequence[str]) -> tuple[float, float]:
    """Run Python with these words; the seconds of the processor, which do not depend on its other work, and all."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds
