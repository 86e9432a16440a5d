"""Table `within_epoch`: how noisy running averages of frozen weights are, batch by batch of an epoch."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.estimators import Estimator, Stream, fold
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.recording.frozen import record_frozen
from experiments.questions.streams.replaying import OfAverages

EPOCHS = 24
_BEFORE = 2  # epochs more at the beginning, in which averages fill their memory

_ABOUT = """\
How noisy running averages are in the course of an epoch, on the weights of the last step, which stay as they are: 24
epochs of the training images, each in an order of its own, after 2 that are not counted."""


class WithinEpoch(OfAverages):
    """Table `within_epoch`."""

    name: ClassVar[str] = "within_epoch"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "estimator": text("as in `gaps`; running averages only"),
            **common("momentum statistics_split layer"),
            "last_batch": text(
                "what becomes of the images that do not fill a batch: a smaller last batch is kept or dropped"
            ),
            "position": integer("batches of the epoch that the average has seen, from 1"),
        },
        others={
            **common("epoch depth channels"),
            "batches": integer("batches of an epoch"),
            "last_share": real("size of the last batch, relative to the others"),
            "epochs": integer("epochs that were averaged over"),
            "noise": real(
                "mean square distance of the averaged mean from that of all batches, in variances of the layer"
            ),
            "spread": real("variance of the means of an epoch's full batches, ddof 1, in variances of the layer"),
        },
    )

    def covers(self, norm: Norm) -> bool:
        return norm.is_plain

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Measure noise in an epoch: a row for each subject, layer and batch, with its smaller last batch and without.

        The weights stay as they are. Each epoch has the training images in an order of its own, as in training.
        """
        (step,) = steps
        layout = run.trace.layout
        stream = _record(run, step)
        averages = [subject.running_average for subject in subjects if subject.running_average]
        per_epoch = run.batches.per_epoch
        full, rest = divmod(len(run.dataset.train.labels), run.config.batch_size)
        # A training that drops its small batches has full epochs alone: kept and dropped are the same then.
        share = 1.0 if per_epoch == full else rest / run.config.batch_size

        frames = []
        # Both are made of one recording: where last batches are dropped, they are cut off each epoch.
        for last_batch, batches, last_share in (("kept", per_epoch, share), ("dropped", full, 1.0)):
            part = _cut_epochs(stream, per_epoch, batches)
            noise, spread = _measure_noise(part, averages, batches, full)
            values = {
                "last_batch": last_batch,
                "last_share": last_share,
                "batches": batches,
                "epochs": EPOCHS,
                "noise": layout.layer_means(noise),
                "spread": layout.layer_means(spread),
                "channels": layout.channels,
            }
            positions = range(1, batches + 1)
            frames.append(tabulate(subjects, steps, values, position=positions, layer=layout.names))
        return pd.concat(frames, ignore_index=True)


def _record(run: Run, step: int) -> Stream:
    """Record the batch moments of whole epochs, with layers that normalize with their batch."""
    per_epoch = run.batches.per_epoch
    epochs = _BEFORE + EPOCHS
    # Recording begins with the epoch that training would begin next, so that all epochs are whole.
    next_epoch = math.ceil(step / per_epoch)
    start = next_epoch * per_epoch
    from_there = run.batches.from_step(start)
    drawn = islice(from_there, epochs * per_epoch)
    model = run.model_at(step)
    trace = record_frozen(model, (images for images, _ in drawn))
    ((_, stream),) = trace.streams()
    return stream


def _cut_epochs(stream: Stream, per_epoch: int, batches: int) -> Stream:
    """Select the first batches of each epoch."""
    is_chosen = torch.arange(len(stream)) % per_epoch < batches
    return replace(stream, batches=stream.batches[is_chosen], counts=stream.counts[is_chosen])


def _measure_noise(stream: Stream, averages: list[Estimator], batches: int, full: int) -> tuple[Tensor, Tensor]:
    """Measure `noise` [averages, batches, channels] and `spread` [channels], in variances of the layer.

    The stream is of whole epochs of so many `batches`, of which the first `full` are not smaller than the others.
    """
    # A running average does not weigh batches by their size. Its errors are taken from a mean that does not
    # either, and not from that of all images.
    level, mean_var = stream.batches.mean(0)
    var = mean_var + stream.eps

    first = _BEFORE * batches + 1
    positions = range(first, len(stream) + 1)
    estimates = fold(averages, stream, positions)
    errors = estimates[:, :, 0] - level
    squares = errors.square() / var
    by_epoch = squares.unflatten(1, (EPOCHS, batches))
    noise = by_epoch.mean(1)

    means = stream.batches[:, 0]
    means_by_epoch = means.unflatten(0, (-1, batches))
    full_ones = means_by_epoch[:, :full]
    variances = full_ones.var(dim=1, correction=1)  # of batches that are drawn with replacement
    return noise, variances.mean(0) / var
