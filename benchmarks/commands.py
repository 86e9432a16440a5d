"""Commands in fresh processes, how they grow with the networks in a folder of results, and a sweep's settings.

One network of the folder is trained and measured. All others are simulated: each has a copy of its files, with its own
settings and its own name in the measured rows, and a job runs on it, finds everything there and writes its request. So
files, names and tables are those of real networks; weights and numbers are the same in all of them.
"""

from __future__ import annotations

import contextlib
import io
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.timing import Result, Timed, alternate, time_once
from bnlab.common.files import write_text
from bnlab.estimators import list_estimators
from bnlab.harness.artifacts.data import Glyphs
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import ensure_trained
from bnlab.harness.jobs import begin_sweep, execute
from bnlab.harness.lab.compose import plan_jobs
from bnlab.harness.measurements import find_measurement
from bnlab.harness.records import locate_rows
from bnlab.harness.schema import read_frame, write_rows

ROUNDS = 3
_BNLAB = ("-m", "bnlab")
_SWEEP = (*_BNLAB, "sweep", "-m", "batch_size=64,256", "seed=range(50)", "steps=2", "model.width=4")

_COMMON = ("steps=8", "model.width=4", "momentum=[0.01,0.1,0.5]", "estimator=[ema,exact]", "threads=1")
# A hundred networks for each seed, and a thousand with the weight decays below.
_SWEPT = (
    "batch_size=16,24,32,48,64,96,128,192,256,384",
    "optimizer.lr=0.01,0.02,0.03,0.05,0.07,0.1,0.15,0.2,0.3,0.5",
)
_SWEPT_TOO = "optimizer.weight_decay=0,1e-5,2e-5,5e-5,1e-4,2e-4,5e-4,1e-3,2e-3,5e-3"

_MOMENTA = [round(10 ** (-3 + 3 * i / 18), 5) for i in range(19)]  # × 2 estimators, + cumulative and exact: 40
_ONE: dict[str, Any] = {"momentum": [0.1], "estimator": ["ema"]}
_FORTY: dict[str, Any] = {"momentum": _MOMENTA, "estimator": ["ema", "ema_debiased", "cumulative", "exact"]}


def measure_start(device: str) -> Iterator[Result]:
    """Time importing, the help of sweeps, a sweep in which nothing is missing, and a report."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = (*_SWEEP, f"results={folder}")
        # The networks are trained here, so that the sweep that is timed finds all of them.
        _run_python(sweep)
        commands = {
            "torch alone": ("-c", "import torch"),
            "with bnlab": ("-c", "import torch, bnlab"),
            "sweep --help": (*_BNLAB, "sweep", "--help"),
            "sweep of 100 networks that are there": sweep,
            "report of quickstart": (*_BNLAB, "report", "experiment=quickstart", "results=results/reference"),
        }
        timed = alternate("a process", ROUNDS, {name: partial(_run_python, words) for name, words in commands.items()})

    yield timed.compare("with bnlab", "torch alone")
    for side, limit in (
        ("sweep --help", 2.0),
        ("sweep of 100 networks that are there", 6.0),
        ("report of quickstart", 8.0),
    ):
        yield timed.compare(side, limit, 1.0)


def measure_store(device: str) -> Iterator[Result]:
    """Time commands on folders with 1,000, 3,000 and 10,000 networks, in seconds of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        # One folder for all three: the networks of fewer seeds are there already, and are not made again.
        for seeds in (1, 3, 10):
            words = [*_COMMON, *_SWEPT, _SWEPT_TOO, "name=store", f"seed=range({seeds})", f"results={folder}"]
            networks = simulate(words)
            yield from _time_commands(networks, words, folder)


def simulate(words: Sequence[str]) -> int:
    """Make all networks of a sweep that are not there, of which the first is trained; return their number."""
    configs = plan_jobs(words, multirun=True).configs
    with contextlib.redirect_stdout(io.StringIO()):
        begin_sweep(configs[:1])
        execute(configs[0])
        first = Run(configs[0])
        # Read once, and written under each network's name.
        rows = {}
        for path in first.folder.glob("rows/*/*.parquet"):
            rows[path.parent.name, path.name] = read_frame(path)
        for config in configs[1:]:
            if not Run(config).finished:
                _copy(first, rows, config)
    return len(configs)


def _copy(first: Run, rows: dict[tuple[str, str], pd.DataFrame], config: Config) -> None:
    """Leave what a network of this configuration leaves; `rows` are the first one's, by table and file."""
    run = Run(config)
    shutil.copytree(first.folder, run.folder, ignore=shutil.ignore_patterns("rows"))
    write_text(run.folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    for (table, file), frame in rows.items():
        path = locate_rows(Path(config.results), run.id, table) / file
        write_rows(path, find_measurement(table).table, frame.assign(run=run.id))
    # This writes the record: the job finds all rows and trains nothing.
    execute(config)


def _time_commands(networks: int, words: Sequence[str], folder: str) -> Iterator[Result]:
    """Time all commands; an experiment on a hundred of the networks is one of the many of a folder of results."""
    results = f"results={folder}"
    what = f"{networks:,} networks"
    sweep = (*_BNLAB, "sweep", "-m", *words)
    # Only once: after it the tables are written, and a further sweep finds nothing missing.
    yield _time(what, "sweep, tables put together", sweep, rounds=1, limit=None)

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
        yield _time(what, side, command, rounds=ROUNDS, limit=1.0)


def _time(what: str, side: str, command: Sequence[str], rounds: int, limit: float | None) -> Result:
    """Compare the processor's seconds, which do not depend on its other work, with ten; the note has all seconds."""
    measured = [_run_python(command) for _ in range(rounds)]
    processor = statistics.median(each for each, _ in measured)
    seconds = statistics.median(each for _, each in measured)
    return Result(what, side, processor, "10 s", 10.0, limit, f"wall {seconds:.1f} s")


def _run_python(words: Sequence[str]) -> tuple[float, float]:
    """Run Python with these words; return the seconds of the processor, and all."""
    # The system adds up all processes that have ended, so the difference is the time of this one.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def measure_sweep(device: str) -> Iterator[Result]:
    """Compare 40 momentum × estimator settings with one, then the gaps of all estimators with the training."""
    for size in (4, 32, 256):
        for measurements, limit in (["gaps"], 1.1), (["gaps", "evaluations"], 1.5):
            sides = {
                "1 setting": partial(_sweep, size, measurements, _ONE),
                "40 settings": partial(_sweep, size, measurements, _FORTY),
            }
            timed = alternate(f"digits, batch {size}, {' and '.join(measurements)}", ROUNDS, sides)
            yield timed.compare("40 settings", "1 setting", limit)
    yield _measure_everything()


def _sweep(batch_size: int, measurements: list[str], settings: dict[str, Any]) -> None:
    # A folder of its own each time: nothing is taken from an earlier round.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        execute(Config(batch_size=batch_size, epochs=6, measurements=measurements, results=folder, **settings))


def _measure_everything() -> Result:
    """Measure all running estimators, 64 momenta, 12 checkpoints of a base network, against its training."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = Config(
            data=Glyphs(images=10_000),
            batch_size=64,
            epochs=4,
            estimator=sorted(list_estimators()),
            momentum=np.geomspace(1e-3, 1, 64).tolist(),
            evaluate_at=[(k + 1) / 12 for k in range(12)],
            measurements=["gaps"],
            results=folder,
        )
        # Trained before, so that the job below only measures.
        training = time_once(partial(ensure_trained, Run(config)))
        measuring = time_once(partial(execute, config))

    what = f"base suite, batch 64: {len(list_estimators())} estimators, 64 momenta, 12 checkpoints"
    return Timed(what, {"gaps": measuring, "training": training}).compare("gaps", "training", 1.0, "one round")
