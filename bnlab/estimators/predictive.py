"""An estimator that chooses its momentum by how well a bank of averages has forecast the next batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators.bank import MOMENTA, Bank, Block
from bnlab.estimators.base import Estimator, Stream
from bnlab.estimators.example import after  # noqa: F401 (in the docstrings)


@dataclass(frozen=True)
class Predictive(Estimator):
    """The one of 50 debiased EMAs, with momenta from 0.001 to 1, that has forecast the latest batches best.

    After k batches each average is a forecast of batch k+1, which is measured on the very weights that the average is
    to describe. The noise of that batch adds the same to the squared error of every momentum, so that the smallest
    error is that of the average nearest to the statistic of the current weights. After each batch the momentum is
    chosen again for each layer, separately for mean and variance: the one with the smallest squared error, averaged
    over the layer's channels and over about the last tenth of the past (the discount is 1 − 1/max(4, k/10)). Errors of
    the mean are in standard deviations; errors of the variance are those of log(variance + eps). The first two batches
    say nothing about the momentum, so the smallest is taken. (The standard deviation is read from the chosen average of
    the logarithms, after 1, 2, 4, …, 64 batches, then after each 64th.)

    The results are averages of the means and of the unbiased variances. Where other batches came before (`updates`),
    they begin from the start instead of the first batch, as torch's own do. A batch with a NaN or infinite value in
    some channel of a layer is left out in that layer.

    Assumes no model of the drift, but independent batches: drawn without replacement they favour slow averages a
    little. It comes near the statistic of batches that normalize with their own moments (statistic="precise"), which is
    not the exact one. The choice jumps between momenta, and comes as late as its score remembers.

    Source: discounted prequential selection (Dawid 1984) over a bank of exponentially weighted averages (Muth 1960);
    noise in what is forecast leaves the ranking as it is (Patton 2011). Ours is the application to batch norm only.

    >>> after(Predictive(), 0, 1, 2)
    [[0.0, 1.0], [1.0, 2.0], [2.0005, 5.0015]]
    """

    name: ClassVar[str] = "predictive"

    def momenta(self, stream: Stream) -> Tensor:
        """List the momenta chosen for mean and variance after each batch: [T, 2, layers], NaN before the first."""
        layers = len(stream.layers) or 1
        shape = (len(stream), 2, layers)
        momenta = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
        numbers = torch.arange(1, len(stream) + 1, device="cpu")
        for part in _split(stream):
            chosen = [MOMENTA[block.choices] for block in part.blocks()]
            if not chosen:
                continue

            first = part.batches[0]
            # After a batch that was left out, the momenta of the last one that was taken still hold.
            latest = part.count_batches(numbers)[first:] - 1
            in_order = torch.cat(chosen)
            momenta[first:, :, part.layers] = in_order[latest]
        return momenta

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor:
        # Where a layer has taken no batch yet, the start stays.
        states = stream.start.repeat(len(positions), 1, 1)
        for part in _split(stream):
            counts = part.count_batches(torch.tensor(positions, device="cpu")).tolist()
            # Each choice depends on all batches before it, so that the fold starts at the beginning whatever positions
            # are asked for.
            for block in part.blocks():
                first = block.bank.count
                last = first + len(block)
                for row, count in enumerate(counts):
                    if first < count <= last:
                        state = block.state(count - first)
                        states[row, :, part.channels] = state
        return states


@dataclass(frozen=True)
class _Part:
    """Layers of a stream that are chosen for together, and the batches that they take."""

    stream: Stream  # of these layers and batches
    layers: slice  # where the layers stand among all
    channels: slice  # where the channels stand among all
    batches: Tensor  # numbers of the batches among all, from 0

    def count_batches(self, positions: Tensor) -> Tensor:
        """Count the batches of this part among the first so many of all."""
        return torch.searchsorted(self.batches, positions)

    def blocks(self) -> Iterator[Block]:
        """Yield the batches block by block, with the momenta chosen in each."""
        stream = self.stream
        bank = Bank.begin(stream.start, stream.updates, stream.eps, stream.layers)
        while bank.count < len(stream):
            end = bank.count + bank.room
            batches = stream.batches[bank.count : end]
            block = bank.forecast(batches)
            yield block
            bank = block.end()


def _split(stream: Stream) -> Iterator[_Part]:
    """Take all layers at once where all values are finite; else each alone, without the batches that are not."""
    layers = stream.layers or (stream.start.shape[1],)
    # Sums are cheaper to look at than a mask of all values. If finite values overflow, only time is lost.
    if stream.batches.sum().isfinite() and stream.start.sum().isfinite():
        batches = torch.arange(len(stream), device="cpu")
        yield _Part(replace(stream, layers=layers), slice(None), slice(None), batches)
        return

    first = 0
    for place, size in enumerate(layers):
        channels = slice(first, first + size)
        is_finite = stream.batches[:, :, channels].isfinite().flatten(1).all(1)
        batches = is_finite.nonzero().squeeze(1)
        yield _Part(_select(stream, channels, batches), slice(place, place + 1), channels, batches)
        first += size


def _select(stream: Stream, channels: slice, batches: Tensor) -> Stream:
    """Take these channels, of one layer, and these batches."""
    start = stream.start[:, channels]
    # A stream may have one eps for all of its channels.
    eps = stream.eps.expand(stream.start.shape[1])
    return replace(
        stream,
        start=start,
        batches=stream.batches[batches, :, channels],
        counts=stream.counts[batches, channels],
        eps=eps[channels],
        layers=(start.shape[1],),
    )
