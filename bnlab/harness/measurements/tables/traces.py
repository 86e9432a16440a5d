"""Table `traces`: mean and variance of two channels of each layer over training, under every estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.components import component
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, RunningAverage, Source
from bnlab.harness.measurements.tables.gaps import flat_statistics, frozen_checkpoint, tabulate
from bnlab.harness.schema import Table, common, integer, real, text

_POINTS = 120  # steps, spaced evenly on a logarithmic axis, at which running averages are shown

_ABOUT = """\
Statistics of two channels of each layer over training: running averages at 120 steps,
evenly spaced on a logarithmic axis, and at those of `evaluate_at`; statistics of frozen weights at the latter."""


@component
@dataclass(unsafe_hash=True)
class Traces(Measurement):
    """Table `traces`."""

    name: str = "traces"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run"),
            "step": integer("updates before the statistics are read"),
            "estimator": text("as in `gaps`; `last_batch` are single batches"),
            **common("momentum statistics_split layer"),
            "channel": integer("number of the channel in its layer, from 0: the first and the middle one"),
        },
        others={
            **common("epoch depth"),
            "mean": real("mean, in the units of the layer's input"),
            "var": real("variance, in their square"),
        },
    )

    def scope(self, run: Run, sources: list[Source]) -> dict[Source, list[int]]:
        """Choose 120 steps of the training and those of `evaluate_at` for running averages, the latter for all others.

        Rules at inference time are left out.
        """
        often = {*run.wanted}
        if run.wanted:
            points = np.geomspace(1, run.wanted[-1], _POINTS)
            often.update(round(point) for point in points)

        steps: dict[Source, list[int]] = {}
        for source in sources:
            if isinstance(source, RunningAverage):
                steps[source] = sorted(often)
            elif not isinstance(source, InferenceRule):
                steps[source] = run.wanted
        return steps

    def reads(self, run: Run, sources: list[Source]) -> list[int]:
        """List all steps of `evaluate_at` if there are statistics of frozen weights."""
        has_frozen = any(isinstance(source, FrozenWeights) for source in sources)
        return run.wanted if has_frozen else frozen_checkpoint(run, sources)

    def measure(self, run: Run, sources: list[Source], steps: list[int]) -> pd.DataFrame:
        """Measure mean and variance: a row for each step, source, layer and channel, the first and the middle one."""
        channels = run.trace.layout.channel_frame()
        is_first = channels["channel"] == 0
        is_middle = channels["channel"] == channels["channels"] // 2
        chosen = channels[is_first | is_middle]

        estimates = flat_statistics(run, sources, steps)[..., chosen.index.to_list()]
        mean, var = estimates.permute(2, 1, 0, 3).numpy()  # each [steps, sources, channels]
        values = {
            "channel": chosen["channel"],
            "depth": chosen["depth"],
            "mean": mean,
            "var": var,
        }
        return tabulate(run, sources, steps, values, layer=chosen["layer"].to_list())
