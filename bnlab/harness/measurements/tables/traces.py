"""Table `traces`: mean and variance of two channels of each layer over training, under every estimator."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd

from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.estimates import flat_statistics, tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, integer, real, text

_POINTS = 120  # steps, spaced evenly on a logarithmic axis, at which running averages are shown

_ABOUT = """\
Statistics of two channels of each layer over training: running averages at 120 steps,
evenly spaced on a logarithmic axis, and at those of `evaluate_at`; statistics of frozen weights at the latter."""


class Traces(Measurement):
    """Table `traces`."""

    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "traces"
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

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose 120 steps and those of `evaluate_at` for running averages, the latter for all others but rules."""
        often: list[int] = []
        if run.measured_steps:  # none where a training diverged at once
            points = np.geomspace(1, max(run.measured_steps), _POINTS)
            often = sorted({*run.measured_steps, *(round(point) for point in points)})

        chosen = [each for each in subjects if not each.is_rule]
        return {each: often if each.running_average else run.measured_steps for each in chosen}

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List all steps of `evaluate_at` if statistics of a checkpoint are asked for.

        Otherwise only the last, whose checkpoint holds the averages if batch norm was frozen.
        """
        are_of_checkpoints = any(each.running_average is None and not each.is_rule for each in subjects)
        return run.measured_steps if are_of_checkpoints else run.measured_steps[-1:]

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Measure mean and variance: a row for each step, subject, layer and channel, the first and the middle one."""
        channels = run.trace.layout.channel_frame()
        is_first = channels["channel"] == 0
        is_middle = channels["channel"] == channels["channels"] // 2
        chosen = channels[is_first | is_middle]

        estimates = flat_statistics(run, subjects, steps)[..., chosen.index.to_list()]
        mean, var = estimates.permute(2, 1, 0, 3).numpy()  # each [steps, subjects, channels]
        values = {
            "channel": chosen["channel"],
            "depth": chosen["depth"],
            "mean": mean,
            "var": var,
        }
        return tabulate(subjects, steps, values, layer=chosen["layer"].to_list())
