"""The exponential moving average and its variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.arguments import require_number
from bnlab.estimators.base import Estimator, Stream, check_momentum
from bnlab.estimators.example import after  # noqa: F401 (in the docstrings)
from bnlab.names import Look


@dataclass(frozen=True)
class EMA(Estimator):
    """`new = (1−m)·old + m·batch` of the mean and the unbiased variance; torch.nn.BatchNorm's running statistics.

    Starts from the trace's start (0 and 1 in a new model), whose weight after t batches is (1−m)^t. Unbiased for
    independent values of a stationary stream only; leaves out the variance of the batch means. Source: torch.

    >>> after(EMA(momentum=0.5), 0, 1, 2)
    [[0.0, 1.0], [0.5, 1.5], [1.75, 4.75]]
    """

    name: ClassVar[str] = "ema"
    look: ClassVar[Look] = Look("running average", "blue")
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
        return torch.tensor(self.momentum, dtype=torch.float64, device="cpu").expand(len(stream))


@dataclass(frozen=True)
class BiasedEMA(EMA):
    """The EMA of the mean and the batch variance with ddof 0, from the same start.

    Low by the factor 1−1/n for independent values, on top of what the EMA leaves out. Source: Keras 3, flax.

    >>> after(BiasedEMA(momentum=0.5), 1, 2)
    [[0.5, 1.0], [1.75, 2.5]]
    """

    name: ClassVar[str] = "ema_biased"
    look: ClassVar[Look] = Look("running average, variances not corrected", "blue", "dashed")

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
    look: ClassVar[Look] = Look("running average, start divided out", "sky", "dashed")

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
    look: ClassVar[Look] = Look("running average, batches pooled", "blue", "dotted")

    def gains(self, stream: Stream) -> Tensor:
        is_start = (stream.steps == 1) & (stream.updates == 0)
        return torch.where(is_start, 1.0, super().gains(stream))

    def values(self, stream: Stream) -> Tensor:
        return stream.squares

    def begin(self, stream: Stream) -> Tensor:
        return stream.about_shift(stream.start)

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        return stream.from_squares(states)


@dataclass(frozen=True)
class DeviationEMA(EMA):
    """The EMA of the mean and of sqrt(var_b+eps), var_b of ddof 0; the variance is its square less eps.

    Low by 2(1−m)/(2−m) of the variance of the deviations, in the long run, beside what the biased EMA leaves out.
    Source: Ioffe 2017 (Batch Renormalization, Algorithm 1).

    >>> after(DeviationEMA(momentum=0.5), 1, 2)
    [[0.5, 1.0], [1.75, 2.25]]
    """

    name: ClassVar[str] = "ema_std"

    def values(self, stream: Stream) -> Tensor:
        return stream.deviations

    def begin(self, stream: Stream) -> Tensor:
        mean, var = stream.start
        return torch.stack((mean, (var + stream.eps).sqrt()))

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        mean, deviation = states.unbind(-2)
        var = (deviation.square() - stream.eps).clamp(min=0)
        return torch.stack((mean, var), dim=-2)


@dataclass(frozen=True)
class DelaggedEMA(DebiasedEMA):
    """`2·E − E(E)` of the mean, E²/E(E) of the unbiased variance (the same for its logarithm), E the debiased EMA.

    On a ramp of the mean, or a variance that falls or grows exponentially, it does not lag behind the last record in
    the long run. The noise is some 2.5 times the EMA's (m small), and the quotient has a bias of the order of the
    relative variance of E; a difference of variances would turn negative where they decay. Source: Mulloy 1994 (DEMA).

    >>> after(DelaggedEMA(momentum=0.5), 1, 2)
    [[1.0, 2.0], [2.7778, 7.7143]]
    """

    name: ClassVar[str] = "delagged"
    look: ClassVar[Look] = Look("running average, lag subtracted", "sky", "mixed")
    twice: ClassVar[bool] = True

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        once, twice = states.unbind(-3)
        mean, var = once.unbind(-2)
        mean_twice, var_twice = twice.unbind(-2)

        mean_ahead = 2 * mean - mean_twice
        var_ahead = torch.where(var_twice > 0, var.square() / var_twice, var)
        return torch.stack((mean_ahead, var_ahead), dim=-2)


@dataclass(frozen=True)
class AdaptiveGain(DebiasedEMA):
    """Gain η_t = η_{t−1}/(η_{t−1} + (1−m)^kappa) from η₁ = 1: kappa=1 is `ema_debiased`, 0 a plain average.

    That recursion is the debiased EMA of momentum 1−(1−m)^kappa, a memory 1/kappa times as long; bias as there. Source:
    AdaB²N (2310.08855), whose code starts from η₁ = m^kappa, so that kappa=1 is the plain EMA, and takes ddof 0.

    >>> after(AdaptiveGain(momentum=0.75, kappa=0.5), 1, 2)
    [[1.0, 2.0], [2.3333, 6.0]]
    """

    name: ClassVar[str] = "adaptive_gain"
    kappa: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self.kappa, lambda k: 0 <= k <= 1, f"adaptive_gain: kappa={self.kappa!r}; it lies in [0, 1]")

    def gains(self, stream: Stream) -> Tensor:
        momentum = 1.0 - (1.0 - self.momentum) ** self.kappa
        if momentum > 0:
            return DebiasedEMA(momentum).gains(stream)
        return 1.0 / stream.steps
