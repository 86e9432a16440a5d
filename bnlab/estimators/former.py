"""Estimators that no experiment uses and that the next version leaves out; importing one from the package warns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators.adaptive import Kalman
from bnlab.estimators.base import Estimator, Stream
from bnlab.estimators.exponential import EMA, DebiasedEMA
from bnlab.estimators.folding import fold


@dataclass(frozen=True)
class Oracle(Kalman):
    """`kalman` with its ratio fitted once, to the whole trace."""

    name: ClassVar[str] = "oracle"

    def fits(self, length: int) -> Iterator[tuple[int, slice]]:
        yield 0, slice(None)


@dataclass(frozen=True)
class Polynomial(Estimator):
    """Gain t^(−alpha); t goes on from a warm start's."""

    name: ClassVar[str] = "polynomial"
    alpha: float = 0.7

    def gains(self, stream: Stream) -> Tensor:
        return (stream.updates + stream.steps) ** -self.alpha


@dataclass(frozen=True)
class FastThenSlow(Polynomial):
    """Gain max(m, t^(−alpha))."""

    name: ClassVar[str] = "fast_then_slow"
    momentum: float = 0.1

    def gains(self, stream: Stream) -> Tensor:
        return super().gains(stream).clamp(min=self.momentum)


@dataclass(frozen=True)
class AdaptiveGain(DebiasedEMA):
    """The debiased EMA of momentum 1−(1−m)^kappa; a plain average at kappa=0."""

    name: ClassVar[str] = "adaptive_gain"
    kappa: float = 0.5

    def gains(self, stream: Stream) -> Tensor:
        momentum = 1.0 - (1.0 - self.momentum) ** self.kappa
        if momentum > 0:
            return DebiasedEMA(momentum).gains(stream)
        return 1.0 / stream.steps


@dataclass(frozen=True)
class DeviationEMA(EMA):
    """The EMA of the mean and of sqrt(var_b+eps), var_b of ddof 0; the variance is its square less eps."""

    name: ClassVar[str] = "ema_std"

    def values(self, stream: Stream) -> Tensor:
        return self._take_roots(stream.biased, stream)

    def begin(self, stream: Stream) -> Tensor:
        return self._take_roots(stream.start, stream)

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        mean, deviation = states.unbind(-2)
        var = (deviation.square() - stream.eps).clamp(min=0)
        return torch.stack((mean, var), dim=-2)

    def _take_roots(self, pairs: Tensor, stream: Stream) -> Tensor:
        mean, var = pairs.unbind(-2)
        deviation = (var + stream.eps).sqrt()
        return torch.stack((mean, deviation), dim=-2)


@dataclass(frozen=True)
class DelaggedEMA(DebiasedEMA):
    """`2·E − E(E)` of the mean, E²/E(E) of the unbiased variance, E the debiased EMA."""

    name: ClassVar[str] = "delagged"

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor:
        average = DebiasedEMA(self.momentum)
        (once,) = fold([average], stream, range(len(stream) + 1))
        of_averages = replace(stream, batches=once[1:])
        (twice,) = fold([average], of_averages, positions)

        mean, var = once[list(positions)].unbind(1)
        mean_twice, var_twice = twice.unbind(1)
        mean_ahead = 2 * mean - mean_twice
        var_ahead = torch.where(var_twice > 0, var.square() / var_twice, var)
        return torch.stack((mean_ahead, var_ahead), dim=1)
