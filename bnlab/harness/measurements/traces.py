"""Table `traces`: mean and variance of two channels of each layer over training, under every estimator."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.gaps import flat_statistics, tabulate
from bnlab.harness.measurements.sources import InferenceRule, RunningAverage, Source

NORMS = RECORDED
_POINTS = 120  # steps, spaced evenly on a logarithmic axis, at which running averages are shown
_CHANNELS = 2


def scope(run: Run, sources: list[Source]) -> dict[Source, list[int]]:
    """Running averages at 120 steps of the training and those of `evaluate_at`, statistics of frozen weights at these.

    Rules at inference time are left out.
    """
    points = {round(step) for last in run.wanted[-1:] for step in np.geomspace(1, last, _POINTS)}
    often = sorted({*points, *run.wanted})
    return {
        source: often if isinstance(source, RunningAverage) else run.wanted
        for source in sources
        if not isinstance(source, InferenceRule)
    }


def traces(run: Run, sources: list[Source], steps: list[int]) -> pd.DataFrame:
    """One row for each step, source, layer and channel: the first channel and the middle one."""
    layout, estimates = run.trace.layout, flat_statistics(run, sources, steps)
    starts = np.cumsum([0, *layout.channels[:-1]])
    chosen = [
        (name, depth, channel, start + channel)
        for depth, (name, start, size) in enumerate(zip(layout.names, starts, layout.channels, strict=True), start=1)
        for channel in sorted({place * size // _CHANNELS for place in range(_CHANNELS)})
    ]
    names, depths, channels, columns = zip(*chosen, strict=True)
    mean, var = estimates[:, :, :, columns].permute(2, 1, 0, 3).numpy()  # each [steps, sources, channels]
    frame = tabulate(run, sources, steps, {"channel": channels, "mean": mean, "var": var}, layer=names)
    return frame.assign(depth=np.tile(depths, len(steps) * len(sources)))
