"""The exponential moving average and its variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators.base import Estimator, Stream, check_momentum
from bnlab.estimators.example import after  # noqa: F401 (in the docstrings)
from bnlab.model.arguments import require_number


@dataclass(frozen=True)
class EMA(Estimator):
    """`new = (1−m)·old + m·batch` of the mean and the unbiased variance; torch.nn.BatchNorm's running statistics.

    Starts from the trace's start (0 and 1 in a new model), whose weight after t batches is (1−m)^t. Unbiased for
    independent values of a stationary stream only; leaves out the variance of the batch means. Source: torch.

    >>> after(EMA(momentum=0.5), 0, 1, 2)
    [[0.0, 1.0], [0.5, 1.5], [1.75, 4.75]]
    """

    name: ClassVar[str] = "ema"
    momentum: float = 0.1

    def __post_init__(self) -> None:
        check_momentum(self.momentum)

    @classmethod
    def from_decay(cls, decay: float) -> EMA:
        """Convert from the other convention (Keras, flax): `new = decay·old + (1−decay)·batch`.

        >>> EMA.from_decay(0.75)
        EMA(momentum=0.25)
        """
        message = f"decay={decay!r}: it is the weight of the old average and lies in [0, 1)"
        require_number(decay, lambda d: 0 <= d < 1, message)
        return cls(momentum=1.0 - decay)

    def gains(self, stream: Stream) -> Tensor:
        # `expand` repeats the number without memory for each batch.
        return torch.tensor(self.momentum, dtype=torch.float64, device="cpu").expand(len(stream))


@dataclass(frozen=True)
class BiasedEMA(EMA):
    """The EMA of the mean and the batch variance with ddof 0, from the same start.

    Low by the factor 1−1/n for independent values, on top of what the EMA leaves out. Source: Keras 3, flax.

    >>> after(BiasedEMA(momentum=0.5), 1, 2)
    [[0.5, 1.0], [1.75, 2.5]]
    """

    name: ClassVar[str] = "ema_biased"

    def values(self, stream: Stream) -> Tensor:
        return stream.biased


@dataclass(frozen=True)
class DebiasedEMA(EMA):
    """The EMA with its start divided out: `(E_t − (1−m)^t·start) / (1 − (1−m)^t)`, mean and unbiased variance.

    The same as gains m/(1−(1−m)^t): the first batch alone, then slowly the EMA. Unbiased from the first batch on while
    the statistics stand still; lags as the EMA does. Source: Kingma & Ba 2015 (the division); haiku's `zero_debias`.

    >>> after(DebiasedEMA(momentum=0.5), 1, 2)
    [[1.0, 2.0], [2.3333, 6.0]]
    """

    name: ClassVar[str] = "ema_debiased"

    def gains(self, stream: Stream) -> Tensor:
        # −expm1(t·log1p(−m)) = 1 − (1−m)^t without cancellation at small m.
        rate = torch.tensor(-self.momentum, dtype=torch.float64, device="cpu").log1p()
        gains = self.momentum / -torch.expm1(stream.steps * rate)
        return gains.clamp(max=1)  # the first rounds to a little more


@dataclass(frozen=True)
class PooledEMA(EMA):
    """Law of total variance: `μ ← μ+mδ; var ← (1−m)(var+mδ²) + m·var_b` with δ = μ_b−μ and var_b of ddof 0.

    The same as EMAs of x and of x², here about the first batch's mean. Starts from the first batch, not from 0 and 1
    (a trace that begins with a warm start goes on from that). E[var] = σ²(1−(1/n_eff)·m/(2−m)) with frozen weights;
    a drifting mean adds to it. Source: Summers & Dinneen 2020.

    >>> after(PooledEMA(momentum=0.5), 1, 2)
    [[1.0, 1.0], [2.0, 3.5]]
    """

    name: ClassVar[str] = "ema_pooled"

    def gains(self, stream: Stream) -> Tensor:
        is_start = (stream.steps == 1) & (stream.updates == 0)
        # A start of 0 and 1 says nothing about the data, so that the first batch replaces it. A warm start is kept.
        return torch.where(is_start, 1.0, super().gains(stream))

    def values(self, stream: Stream) -> Tensor:
        return stream.squares

    def begin(self, stream: Stream) -> Tensor:
        return stream.about_shift(stream.start)

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        return stream.from_squares(states)
