"""Table `last_batches`: how far the last batches of the training move every running average."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.estimators import Stream
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import EXACT, measure_at, tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, integer, real, text
from experiments.questions.streams.replaying import OfAverages, replay_means, stream_until

_LAST = (1, 4, 16, 64)  # batches

_ABOUT = """\
How far the last batches of the training move running averages."""


class LastBatches(OfAverages):
    """Table `last_batches`."""

    name: ClassVar[str] = "last_batches"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run"),
            "step": integer("updates, of which the last one averages the last batch"),
            "estimator": text("as in `gaps`; running averages only"),
            **common("momentum statistics_split layer"),
            "last": integer("how many batches are others than they were; at most half of all"),
        },
        others={
            **common("epoch depth"),
            "moved": real(
                "where they are the batches before them: the average's change, in standard deviations, root mean "
                "square over channels"
            ),
        },
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose running averages alone, and the final step if there are two batches before it."""
        steps = [step for step in run.measured_steps[-1:] if step > 1]
        return {subject: steps for subject in subjects if subject.running_average}

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Measure how far the last batches move every average: a row for each subject, layer and number of batches."""
        (step,) = steps
        layout = run.trace.layout
        stream = stream_until(run, step)
        _, var = layout.flatten(measure_at(run, step, EXACT))
        deviation = (var + layout.channel_eps).sqrt()
        plain = replay_means(subjects, stream)

        frames = []
        for last in _LAST:
            # There have to be as many batches before the last ones, which take their place.
            if 2 * last > len(stream):
                break
            repeated = replay_means(subjects, _repeat_before(stream, last))
            moved = (repeated - plain) / deviation
            values = {
                "last": last,
                "moved": layout.layer_means(moved.square()).sqrt(),
            }
            frames.append(tabulate(subjects, steps, values, layer=layout.names))
        return pd.concat(frames, ignore_index=True)


def _repeat_before(stream: Stream, last: int) -> Stream:
    """Put the batches before the last ones in the place of these."""

    def repeat(values: Tensor) -> Tensor:
        before = values[-2 * last : -last]
        return torch.cat((values[:-last], before))

    return replace(stream, batches=repeat(stream.batches), counts=repeat(stream.counts))
