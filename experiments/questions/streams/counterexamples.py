"""Table `counterexamples`: how far every running average is off on streams that are constructed to mislead it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.estimators import Stream
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import seed_by, tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, integer, real, text
from experiments.questions.streams.replaying import OfAverages, replay_means, shift_last, stream_until

_BATCHES = 200  # the last of the training
_SIZES = (0.1, 1.0, 10.0, 100.0)
_JUMPS = {"jump_1": 1, "jump_10": 10}  # batches after the jump
_CASES = [("shuffled", 1.0), ("sorted", 1.0)]
_CASES += [(case, size) for case in (*_JUMPS, "rare", "single") for size in _SIZES]

_ABOUT = """\
How far running averages are off on streams that are constructed to mislead them, from the moments of the last 200
batches of the training in an order that is drawn for each network. Averages start at their mean, but for those that
have no start.

- `shuffled`: the batches as they are; the mean of all of them is true.
- `sorted`: in each channel in ascending order of their means; the same mean is true.
- `jump_1`, `jump_10`: the last one, or 10, are `size` standard deviations higher, because the weights have changed;
  the mean of all batches as they were, plus `size` standard deviations.
- `rare`: the last one is `size` standard deviations higher, because of what is in it; the mean of all batches, this
  one too.
- `single`: the same, but it is one image alone; the mean of all images."""


class Counterexamples(OfAverages):
    """Table `counterexamples`."""

    name: ClassVar[str] = "counterexamples"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run"),
            "step": integer("updates, of which the last one averages the last batch"),
            "estimator": text("as in `gaps`; running averages only"),
            **common("momentum statistics_split"),
            "case": text("as above"),
            "size": real("what is added, in standard deviations; 1 where nothing is"),
        },
        others={
            **common("epoch"),
            "batches": integer("batches of the stream"),
            "error": real(
                "distance of the mean from the true one, in standard deviations, root mean square over all channels"
            ),
        },
    )

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        # All that is needed has been recorded in training: no checkpoint is read.
        return []

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Measure how far every average is off: a row for each subject, case and size, after one step."""
        (step,) = steps
        stream = shuffle_last(run, stream_until(run, step))
        unit = deviation(stream)
        errors = []
        for case, size in _CASES:
            changed, true_mean = construct(case, size, stream, run.config.batch_size)
            means = replay_means(subjects, changed)
            distances = (means - true_mean) / unit
            errors.append(distances.square().mean(1).sqrt())

        cases = [case for case, _ in _CASES]
        values = {
            "size": [size for _, size in _CASES],
            "batches": len(stream),
            "error": torch.stack(errors, dim=1).numpy(),
        }
        return tabulate(subjects, steps, values, case=cases)


def shuffle_last(run: Run, stream: Stream) -> Stream:
    """Put the last batches into an order that is drawn for each network; the average of them all is the start."""
    recorded = len(stream)
    count = min(_BATCHES, recorded)
    first = recorded - count
    generator = seed_by(f"{run.id} shuffled")
    # In a random order the batches have no trend of their own, which averages would follow beside what a case
    # adds.
    order = first + torch.randperm(count, generator=generator)

    batches = stream.batches[order]
    counts = stream.counts[order]
    start = batches.mean(0)
    return replace(stream, start=start, batches=batches, counts=counts, updates=0)


def deviation(stream: Stream) -> Tensor:
    """Compute the standard deviation of values, [C], from the average of the batches' variances."""
    return (stream.start[1] + stream.eps).sqrt()


def construct(case: str, size: float, stream: Stream, batch_size: int) -> tuple[Stream, Tensor]:
    """Construct the batches of a case from those of `shuffle_last`, and the mean [C] that is true in it."""
    mean = stream.start[0]
    if case == "shuffled":
        return stream, mean
    if case == "sorted":
        return _sort(stream), mean

    shift = size * deviation(stream)
    moved = _JUMPS.get(case, 1)
    changed = shift_last(stream, moved, shift)
    if case in _JUMPS:
        # The weights have changed for good: the true mean moves as far as the batches do.
        return changed, mean + shift
    # Only this batch is unusual: the true mean counts it as one batch among all.
    if case == "rare":
        means = changed.batches[:, 0]
        return changed, means.mean(0)
    return _shrink_last(changed, batch_size)


def _sort(stream: Stream) -> Stream:
    """Put each channel's batches in ascending order of their means."""
    means = stream.batches[:, :1]
    # Each variance goes along with the mean of its batch.
    order = means.argsort(0).expand_as(stream.batches)
    ascending = stream.batches.gather(0, order)
    return replace(stream, batches=ascending)


def _shrink_last(stream: Stream, batch_size: int) -> tuple[Stream, Tensor]:
    """Make the last batch one image, and compute the mean of all images, [C]."""
    counts = stream.counts.clone()
    # One image has that share of a full batch's values.
    counts[-1] = counts.amax(0) / batch_size

    # Weighted by their values, so that the one image counts as one of all images.
    means = stream.batches[:, 0]
    sums = counts * means
    true_mean = sums.sum(0) / counts.sum(0)
    return replace(stream, counts=counts), true_mean
