"""Averages weighted by batch size: a smaller last batch of an epoch moves them less, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators.base import Estimator, Stream
from bnlab.estimators.example import after  # noqa: F401 (in the docstrings)
from bnlab.estimators.exponential import EMA
from bnlab.names import Look


@dataclass(frozen=True)
class WeightedEMA(EMA):
    """The EMA with gain m·n/N: n values per channel in the batch, N in the largest batch so far.

    With batches of one size it is the EMA. An image of a small batch moves it as much as one of a full batch, where
    torch's gain is m whatever the size. Mean and unbiased variance. Source: ours.

    >>> after(WeightedEMA(momentum=0.5), 1, 2)
    [[0.5, 1.5], [1.75, 4.75]]
    """

    name: ClassVar[str] = "ema_weighted"
    look: ClassVar[Look] = Look("running average, weighted by batch size", "red", "dashed")

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
    look: ClassVar[Look] = Look("last full batch only", "orange", "mixed")

    def gains(self, stream: Stream) -> Tensor:
        is_full = stream.counts == _count_largest(stream)
        return is_full.double()


def _count_largest(stream: Stream) -> Tensor:
    """Count the values per channel of the largest batch up to each one: float64 [T, C]."""
    if not len(stream):
        return stream.counts
    return torch.cummax(stream.counts, dim=0).values
