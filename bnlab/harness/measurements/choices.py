"""Table `choices`: the momentum that forecasts have chosen, by layer and statistic, over training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnlab.estimators import Predictive
from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.sources import Source

NORMS = RECORDED
OF_BATCHES = True
_POINTS = 60  # steps, evenly over the training


def scope(run: Run, sources: list[Source]) -> dict[None, list[int]]:
    """No estimator; 60 steps of the training and those of `evaluate_at`."""
    points = {round(step) for last in run.wanted[-1:] for step in np.linspace(1, last, _POINTS)}
    return {None: sorted({*points, *run.wanted})}


def choices(run: Run, sources: list[None], steps: list[int]) -> pd.DataFrame:
    """One row for each step, layer and statistic: what `Predictive` has chosen after the batches up to that step."""
    rows = []
    trace = run.trace
    depths = {name: depth for depth, name in enumerate(trace.layers, start=1)}
    for names, stream in trace.streams():
        momenta = Predictive().momenta(stream)
        recorded = np.array(trace.layers[names[0]].steps)
        for step in steps:
            position = int(np.searchsorted(recorded, step, side="right")) - 1
            if position < 0:
                continue
            for place, name in enumerate(names):
                where = run.id, step, step / run.batches.per_epoch, name, depths[name], stream.layers[place]
                chosen = momenta[position, :, place].tolist()
                rows += [(*where, *pair) for pair in zip(("mean", "var"), chosen, strict=True)]
    columns = ["run", "step", "epoch", "layer", "depth", "channels", "statistic", "chosen"]
    return pd.DataFrame(rows, columns=columns)
