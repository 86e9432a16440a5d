"""Averages over all batches or the last ones, and those that ask how large a batch is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators.base import Estimator, Stream
from bnlab.estimators.example import after  # noqa: F401 (in the docstrings)
from bnlab.estimators.exponential import EMA, PooledEMA
from bnlab.model.arguments import require_count


@dataclass(frozen=True)
class Cumulative(Estimator):
    """The plain average of all batches, equally weighted: gain 1/t; torch's `momentum=None`.

    t goes on from the batches that the buffers had seen before, as torch's does. Lags by half the run. Source: torch.

    >>> after(Cumulative(), 1, 2)
    [[1.0, 2.0], [2.0, 5.0]]
    """

    name: ClassVar[str] = "cumulative"

    def gains(self, stream: Stream) -> Tensor:
        return 1.0 / (stream.updates + stream.steps)


@dataclass(frozen=True)
class WeightedCumulative(Estimator):
    """The average of batch means and unbiased variances weighted by their counts: gain n_t/Σn.

    A warm start counts as `updates` batches of the first recorded one's size, since theirs are not known. Its mean
    is that of all the values; its variance leaves out that of the batch means. Source: SWA's reference code.

    >>> after(WeightedCumulative(), 1, 2)
    [[1.0, 2.0], [2.0, 5.0]]
    """

    name: ClassVar[str] = "cumulative_weighted"

    def gains(self, stream: Stream) -> Tensor:
        # A slice, because a stream without batches has no first row.
        before = stream.updates * stream.counts[:1]
        total = before + stream.counts.cumsum(0)
        return stream.counts / total


@dataclass(frozen=True)
class PooledCumulative(WeightedCumulative):
    """Mean and variance (ddof 0) of all values seen, exact however they are split into batches; gain n_t/Σn.

    The running counterpart of "precise BN": with frozen weights the two are the same. Under way a drifting mean adds
    to the variance. Warm start as in `cumulative_weighted`. Source: fvcore `update_bn_stats`; Wu & Johnson 2021.

    >>> after(PooledCumulative(), 1, 2)
    [[1.0, 1.0], [2.0, 3.5]]
    """

    name: ClassVar[str] = "cumulative_pooled"
    # These come from PooledEMA without inheritance, because this is no EMA and has no momentum.
    values = PooledEMA.values
    begin = PooledEMA.begin
    read = PooledEMA.read


@dataclass(frozen=True)
class Window(Estimator):
    """The plain average of the last `k` batches; `pooled`: mean and variance (ddof 0) of all their values.

    While there are fewer than k, all of them; a warm start fills in for the batches it was made of. The lag is (k−1)/2
    steps, the noise 1/k of a batch's (independent batches). Source: the simple moving average.

    >>> after(Window(k=1), 1, 2)
    [[1.0, 2.0], [3.0, 8.0]]
    >>> after(Window(k=2, pooled=True), 1, 2)
    [[1.0, 1.0], [2.0, 3.5]]
    """

    name: ClassVar[str] = "window"
    k: int = 20
    pooled: bool = False

    def __post_init__(self) -> None:
        require_count(self.k, f"window: k={self.k!r}; it counts batches and is 1 or more")

    def _weigh(self, stream: Stream) -> Tensor:
        """Return the weight of each batch inside the window: [T, C]."""
        return stream.counts if self.pooled else torch.ones_like(stream.counts)

    def values(self, stream: Stream) -> Tensor:
        return stream.squares if self.pooled else stream.batches

    def begin(self, stream: Stream) -> Tensor:
        return stream.about_shift(stream.start) if self.pooled else stream.start

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        return stream.from_squares(states) if self.pooled else states

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor:
        # Sums over the window alone: batches that have left it leave no rounding behind, and a bad batch no NaN.
        values = self.values(stream)
        begin = self.begin(stream)
        weights = self._weigh(stream)[:, None]

        states = begin.new_empty(len(positions), *begin.shape)
        for state, position in zip(states, positions, strict=True):
            first = max(position - self.k, 0)
            inside = weights[first:position]
            weighted = inside * values[first:position]
            total = inside.sum(0)
            summed = weighted.sum(0)

            # The sizes of the batches before a warm start are not known; each counts as much as the first recorded one.
            missing = min(stream.updates, self.k - position)
            if missing > 0 and position:
                warm = missing * weights[0]
                total = total + warm
                summed = summed + warm * begin
            # At position 0 this is 0/0; `fold` writes the start there.
            state.copy_(summed / total)
        return states


@dataclass(frozen=True)
class LastBatch(Estimator):
    """The last batch's mean and unbiased variance: gain 1, no lag, all of the noise.

    Assumes large batches; unbiased for independent values, whatever the weights did before. Source: the EMA at m = 1.

    >>> after(LastBatch(), 1, 2)
    [[1.0, 2.0], [3.0, 8.0]]
    """

    name: ClassVar[str] = "last_batch"

    def gains(self, stream: Stream) -> Tensor:
        return torch.ones(len(stream), dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class WeightedEMA(EMA):
    """The EMA with gain m·n/N: n values per channel in the batch, N in the largest batch so far.

    With batches of one size it is the EMA. An image of a small batch moves it as much as one of a full batch, where
    torch's gain is m whatever the size. Mean and unbiased variance. Source: ours.

    >>> after(WeightedEMA(momentum=0.5), 1, 2)
    [[0.5, 1.5], [1.75, 4.75]]
    """

    name: ClassVar[str] = "ema_weighted"

    def gains(self, stream: Stream) -> Tensor:
        return self.momentum * stream.counts / _count_largest(stream)


@dataclass(frozen=True)
class LastFullBatch(Estimator):
    """The moments of the latest batch that is as large as the largest so far: mean and unbiased variance.

    The last batch alone, but for a smaller one at the end of an epoch, which it leaves out. Source: ours.

    >>> after(LastFullBatch(), 1, 2)
    [[1.0, 2.0], [3.0, 8.0]]
    """

    name: ClassVar[str] = "last_full_batch"

    def gains(self, stream: Stream) -> Tensor:
        is_full = stream.counts == _count_largest(stream)
        return is_full.double()


def _count_largest(stream: Stream) -> Tensor:
    """Count the values per channel of the largest batch up to each one: float64 [T, C]."""
    if not len(stream):
        return stream.counts
    # Not the largest of the whole stream: what a batch weighs must not depend on batches to come.
    return torch.cummax(stream.counts, dim=0).values
