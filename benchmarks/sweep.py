"""Cost of a sweep over many momentum × estimator settings, against one setting and against the training."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.timing import Result, Timed, alternate, time_once
from bnlab.estimators import list_estimators
from bnlab.harness.artifacts.data import Glyphs
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.jobs import execute

ROUNDS = 7
_FEW = 3  # trainings of a larger network
_MOMENTA = [round(10 ** (-3 + 3 * i / 18), 5) for i in range(19)]  # × 2 estimators, + cumulative and exact: 40
_ONE: dict[str, Any] = {"momentum": [0.1], "estimator": ["ema"]}
_FORTY: dict[str, Any] = {"momentum": _MOMENTA, "estimator": ["ema", "ema_debiased", "cumulative", "exact"]}
_MEASURED = (
    ("gaps", ["gaps"], 1.1),
    ("gaps and final accuracy", ["gaps", "evaluations"], 1.5),
)


def measure() -> Iterator[Result]:
    for size in (4, 32, 256):
        for what, measurements, limit in _MEASURED:
            sides = {
                "1 setting": partial(_sweep, size, measurements, _ONE),
                "40 settings": partial(_sweep, size, measurements, _FORTY),
            }
            timed = alternate(f"digits, batch {size}, {what}", ROUNDS, sides)
            yield timed.compare("40 settings", "1 setting", limit)
    yield _measure_everything()


def _sweep(batch_size: int, measurements: list[str], settings: dict[str, Any]) -> None:
    # A folder of its own each time: nothing is taken from an earlier round.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        execute(Config(batch_size=batch_size, epochs=6, measurements=measurements, results=folder, **settings))


def _measure_everything() -> Result:
    """Measure all running estimators, 64 momenta, 12 checkpoints of a base network, against its training."""
    training = []
    measuring = []
    for _ in range(_FEW):
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
            training.append(time_once(partial(ensure_trained, Run(config))))
            measuring.append(time_once(partial(execute, config)))

    what = f"base suite, batch 64: {len(list_estimators())} estimators, 64 momenta, 12 checkpoints"
    medians = {"gaps": statistics.median(measuring), "training": statistics.median(training)}
    return Timed(what, medians).compare("gaps", "training", 1.0)
