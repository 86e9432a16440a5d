"""The recorded batch moments of a network up to a step, as a stream that measurements change before they replay it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from bnlab.estimators import Stream, fold
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.subjects import Subject


class OfAverages(Measurement):
    """A measurement of running averages alone, at the final step."""

    about_batches: ClassVar[bool] = True
    at_last_step: ClassVar[bool] = True
    predicts: ClassVar[bool] = False

    def covers(self, norm: Norm) -> bool:
        return norm.takes_batch_whole

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose running averages, and the final step."""
        return {subject: self.list_steps(run) for subject in subjects if subject.running_average}


def stream_until(run: Run, step: int) -> Stream:
    """Select all layers' moments of the batches up to a step, channels in the order of the trace's layout."""
    ((names, stream),) = run.trace.streams()  # all layers were called at the same steps
    recorded = bisect_right(run.trace.layers[names[0]].steps, step)
    return replace(stream, batches=stream.batches[:recorded], counts=stream.counts[:recorded])


def replay_means(subjects: Sequence[Subject], stream: Stream) -> Tensor:
    """Compute every subject's mean after the last batch: float64 [subjects, all channels]."""
    # `fold` gives [averages, positions, 2, channels]: one position here, and of mean and variance the mean.
    averages = [subject.running_average for subject in subjects if subject.running_average]
    return fold(averages, stream, [len(stream)])[:, 0, 0]


def shift_last(stream: Stream, count: int, shift: Tensor) -> Stream:
    """Copy the stream with the means of its last `count` batches larger by `shift` [C]."""
    batches = stream.batches.clone()
    batches[-count:, 0] += shift
    return replace(stream, batches=batches)
