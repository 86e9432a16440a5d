"""Table `traces`: mean and variance of two channels of each layer over training, under every estimator."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.checkpoints import frozen_checkpoint
from bnlab.harness.measurements.gaps import flat_statistics, tabulate
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, RunningAverage, Source

_POINTS = 120  # steps, spaced evenly on a logarithmic axis, at which running averages are shown


def scope(run: Run, sources: list[Source]) -> dict[Source, list[int]]:
    """Running averages at 120 steps of the training and those of `evaluate_at`, statistics of frozen weights at these.

    Rules at inference time are left out.
    """
    points = {round(step) for last in run.wanted[-1:] for step in np.geomspace(1, last, _POINTS)}
    often = sorted({*points, *run.wanted})
    shown = [source for source in sources if not isinstance(source, InferenceRule)]
    return {source: often if isinstance(source, RunningAverage) else run.wanted for source in shown}


def reads(run: Run, sources: list[Source]) -> list[int]:
    """Those of all steps of `evaluate_at` if there are statistics of frozen weights."""
    has_frozen = any(isinstance(source, FrozenWeights) for source in sources)
    return run.wanted if has_frozen else frozen_checkpoint(run, sources)


def traces(run: Run, sources: list[Source], steps: list[int]) -> pd.DataFrame:
    """One row for each step, source, layer and channel: the first channel and the middle one."""
    channels = run.trace.layout.channel_frame()
    chosen = channels[(channels["channel"] == 0) | (channels["channel"] == channels["channels"] // 2)]
    estimates = flat_statistics(run, sources, steps)[..., chosen.index.to_list()]
    mean, var = estimates.permute(2, 1, 0, 3).numpy()  # each [steps, sources, channels]
    values = {"channel": chosen["channel"], "depth": chosen["depth"], "mean": mean, "var": var}
    return tabulate(run, sources, steps, values, layer=chosen["layer"].to_list())
