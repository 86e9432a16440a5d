"""Table `within_epoch`: how noisy running averages of frozen weights are, batch by batch of an epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.estimators import Estimator, Stream, fold
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.components import component
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.sources import RunningAverage, Source
from bnlab.harness.measurements.streams import final_step
from bnlab.harness.measurements.tables.gaps import tabulate
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.layout import Layout
from bnlab.recording.frozen import record_frozen

EPOCHS = 24
_BEFORE = 2  # epochs more at the beginning, in which averages fill their memory

_ABOUT = """\
How noisy running averages are in the course of an epoch, on the weights of the last step, which stay as they are: 24
epochs of the training images, each in an order of its own, after 2 that are not counted."""


@component
@dataclass(unsafe_hash=True)
class WithinEpoch(Measurement):
    """Table `within_epoch`."""

    about_batches: ClassVar[bool] = True
    at_last_step: ClassVar[bool] = True
    name: str = "within_epoch"
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

    def scope(self, run: Run, sources: list[Source]) -> dict[Source, list[int]]:
        return final_step(run, sources)

    def measure(self, run: Run, sources: list[RunningAverage], steps: list[int]) -> pd.DataFrame:
        """One row for each source, layer and batch of an epoch; with the smaller last batch of each, and without.

        The weights stay as they are. Each epoch has the training images in an order of its own, as in training.
        """
        (step,) = steps
        layout, stream = run.trace.layout, _record(run, step)
        averages = [source.average for source in sources]
        per_epoch, size, images = run.batches.per_epoch, run.config.batch_size, len(run.dataset.train.labels)
        full = images // size
        rests = {"kept": (per_epoch, 1.0 if per_epoch == full else images % size / size), "dropped": (full, 1.0)}
        frames = []
        for last, (batches, share) in rests.items():
            noise, spread = _measure(stream, averages, layout, per_epoch, batches, full)
            values = {"noise": noise, "spread": spread, "channels": layout.channels}
            frame = tabulate(run, sources, steps, values, position=range(1, batches + 1), layer=layout.names)
            frames.append(frame.assign(last_batch=last, last_share=share, batches=batches, epochs=EPOCHS))
        return pd.concat(frames, ignore_index=True)


def _record(run: Run, step: int) -> Stream:
    """The batch moments of whole epochs, with layers that normalize with their batch."""
    per_epoch = run.batches.per_epoch
    first = -(-step // per_epoch) * per_epoch  # an epoch begins there
    drawn = islice(run.batches.from_step(first), (_BEFORE + EPOCHS) * per_epoch)
    trace = record_frozen(run.model_at(step), (images for images, _ in drawn))
    ((_, stream),) = trace.streams()
    return stream


def _measure(
    stream: Stream, averages: list[Estimator], layout: Layout, per_epoch: int, batches: int, full: int
) -> Tensor:
    """`noise` and `spread` of the first `batches` of each epoch, of which `full` are of one size.

    Returns:
        float64 [2, averages, batches, layers], in variances of the layer.
    """
    chosen = (torch.arange(len(stream)) % per_epoch) < batches
    part = replace(stream, batches=stream.batches[chosen], counts=stream.counts[chosen])
    level, var = part.batches.mean(0)
    var = var + part.eps
    estimates = fold(averages, part, range(_BEFORE * batches + 1, len(part) + 1))[:, :, 0]
    squares = ((estimates - level).square() / var).unflatten(1, (EPOCHS, batches))
    means = part.batches[:, 0].unflatten(0, (-1, batches))[:, :full]
    spread = means.var(dim=1, correction=1).mean(0) / var  # of batches of one size, with replacement
    error = layout.layer_means(squares.mean(1))
    return torch.stack((error, layout.layer_means(spread).expand_as(error)))
