"""Commands in fresh processes, and a sweep with many settings against one with a single setting."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.timing import Result, Timed, alternate, time_once
from bnlab.estimators import list_estimators
from bnlab.harness.artifacts.data import Glyphs
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import ensure_trained
from bnlab.harness.jobs import execute

ROUNDS = 3
_BNLAB = ("-m", "bnlab")
_SWEEP = (*_BNLAB, "sweep", "-m", "batch_size=64,256", "seed=range(50)", "steps=2", "model.width=4")

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


def _run_python(words: Sequence[str]) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


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
