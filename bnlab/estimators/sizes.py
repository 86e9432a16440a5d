"""Averages that ask how large a batch is: a smaller last batch of an epoch moves them less, or not at all."""

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
    """The EMA with each batch weighted by its size: gain m·n_t/N, N the values of the largest batch so far.

    With batches of one size it is the EMA. A last batch of an eighth of the images moves it by an eighth as much, so
    that every image of the latest batches counts alike. Mean and unbiased variance. Source: ours; torch's weights are m
    whatever the size.

    >>> after(WeightedEMA(momentum=0.5), 1, 2)
    [[0.5, 1.5], [1.75, 4.75]]
    """

    name: ClassVar[str] = "ema_weighted"
    look: ClassVar[Look] = Look("EMA, weighted by batch size", "green", "dashed")

    def gains(self, stream: Stream) -> Tensor:
        return self.momentum * stream.counts / _find_largest(stream)


@dataclass(frozen=True)
class LastFullBatch(Estimator):
    """The moments of the latest batch that is as large as the largest so far: mean and unbiased variance.

    The last batch alone, but for a smaller one at the end of an epoch, which it leaves out. Source: ours.

    >>> after(LastFullBatch(), 1, 2)
    [[1.0, 2.0], [3.0, 8.0]]
    """

    name: ClassVar[str] = "last_full_batch"
    look: ClassVar[Look] = Look("last full batch only", "orange", "dashed")

    def gains(self, stream: Stream) -> Tensor:
        is_full = stream.counts == _find_largest(stream)
        return is_full.double()


def _find_largest(stream: Stream) -> Tensor:
    """Find the values in the largest batch up to each one, [T, C]."""
    if not len(stream):
        return stream.counts
    return torch.cummax(stream.counts, dim=0).values
