"""What a sweep over 40 momentum × estimator settings costs against one setting, on the demo's networks."""

from __future__ import annotations

import contextlib
import io
import tempfile
from functools import partial
from typing import Any

from benchmarks.timing import Result, alternate
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.jobs import execute

ROUNDS = 7
_MOMENTA = [round(10 ** (-3 + 3 * i / 18), 5) for i in range(19)]  # × 2 estimators, + cumulative and exact: 40


_BOTH = ["gaps", "evaluations"]
_ONE: dict[str, Any] = {"momentum": [0.1], "estimator": ["ema"]}
_FORTY: dict[str, Any] = {"momentum": _MOMENTA, "estimator": ["ema", "ema_debiased", "cumulative", "exact"]}


def results() -> list[Result]:
    found = []
    for size in (4, 32, 256):
        sides = {
            "one, gaps": partial(_sweep, size, ["gaps"], _ONE),
            "forty, gaps": partial(_sweep, size, ["gaps"], _FORTY),
            "one, both": partial(_sweep, size, _BOTH, _ONE),
            "forty, both": partial(_sweep, size, _BOTH, _FORTY),
        }
        median = alternate(sides, ROUNDS)
        for kind, what, limit in (("gaps", "gaps", 1.1), ("both", "gaps and final accuracy", 1.5)):
            seconds, reference = median[f"forty, {kind}"], median[f"one, {kind}"]
            what = f"digits, batch {size}, {what}"
            found.append(Result(what, "40 settings", seconds, "1 setting", reference, limit))
    return found


def _sweep(batch_size: int, measurements: list[str], settings: dict[str, Any]) -> None:
    # A folder of its own each time: nothing is taken from an earlier round.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        execute(Config(batch_size=batch_size, epochs=6, measurements=measurements, results=folder, **settings))
