"""Predictive momentum with another score, another choice or another memory: estimators to compare it with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators import DebiasedEMA, Estimator, Stream
from bnlab.estimators.bank import MOMENTA, by_channel
from bnlab.estimators.base import fold

BANK = [DebiasedEMA(momentum) for momentum in MOMENTA.tolist()]
_ALIKE = 2  # the first batches, which all averages forecast alike
_TENTH, _FEWEST = (
    0.1,
    4.0,
)  # what a score remembers: this share of the past, and so many batches at least


@dataclass(frozen=True)
class Variant(Estimator):
    """A bank of 50 debiased EMAs, weighted by how well each has forecast the batches before.

    As `bnlab.estimators.Predictive`, in a plain loop over the batches, with two parts that may be others: the error of
    a forecast of the variance (`score`), and what the averages weigh after their errors (`weigh`). The unit of the
    mean's squared error is the median of the bank's variances. A NaN in a batch is not left out.
    """

    score: ClassVar[str] = "logarithm"  # see `find_errors`

    @abstractmethod
    def weigh(self, errors: Tensor) -> Tensor:
        """Weights [T, momenta, columns] after each batch, which add up to 1.

        Args:
            errors: [T, momenta, columns], squared, of the forecast of each batch; a column is the mean or the variance
                of a layer.
        """

    def gains(self, stream: Stream) -> Tensor:
        """The newest batch's weight; what is given out jumps besides, where the weights change."""
        own = torch.stack([average.gains(stream) for average in BANK], dim=1)
        return by_channel((own[:, :, None, None] * self._weights(stream)).sum(1), _layers(stream))

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor:
        after = self._weights(stream)[[position - 1 for position in positions]].transpose(0, 1)
        return (by_channel(after, _layers(stream)) * fold(BANK, stream, positions)).sum(0)

    def _weights(self, stream: Stream) -> Tensor:
        """[T, momenta, 2, layers], for mean and variance."""
        errors = find_errors(stream)
        found = [self.weigh(errors[name]) for name in ("mean", self.score)]
        return torch.stack(found, dim=2)


class Best(Variant):
    """The choice of `predictive`: the average with the smallest error over the last tenth of the past."""

    name: ClassVar[str] = "best_forecast"
    share: ClassVar[float] = _TENTH

    def weigh(self, errors: Tensor) -> Tensor:
        return choose(discount(errors, self.share))


class Qlike(Best):
    """Variances scored by x/f − log(x/f) − 1, for a batch's x and the forecast f (QLIKE; Patton 2011)."""

    name: ClassVar[str] = "qlike"
    score: ClassVar[str] = "qlike"


class Square(Best):
    """Variances scored by their squared error, in units of the median forecast."""

    name: ClassVar[str] = "squared_error"
    score: ClassVar[str] = "square"


class Short(Best):
    """A memory of the last fiftieth of the past instead of the last tenth."""

    name: ClassVar[str] = "short_memory"
    share: ClassVar[float] = 0.02


class Few(Variant):
    """The mean of the five averages with the smallest errors, instead of the best one."""

    name: ClassVar[str] = "best_five"

    def weigh(self, errors: Tensor) -> Tensor:
        best = discount(errors, _TENTH).topk(5, dim=1, largest=False).indices
        return torch.zeros_like(errors).scatter_(1, best, 1 / 5)


class Softmax(Variant):
    """All averages, weighted by exp(−10·excess): score less smallest score, in units of the best's error a batch."""

    name: ClassVar[str] = "softmax"

    def weigh(self, errors: Tensor) -> Tensor:
        scores = discount(errors, _TENTH)
        best = scores.amin(1, keepdim=True)
        number = torch.arange(1, len(errors) + 1, dtype=torch.float64)[:, None, None]
        unit = (best / (_TENTH * number).clamp(min=_FEWEST)).clamp(min=torch.finfo(torch.float64).tiny)
        return (-10 * (scores - best) / unit).softmax(1)


class Followed(Variant):
    """The last 1, 3, 10 or 30% of the past: the memory whose choices have forecast the last tenth best."""

    name: ClassVar[str] = "followed_memory"

    def weigh(self, errors: Tensor) -> Tensor:
        choices = torch.stack([choose(discount(errors, share)) for share in (0.01, 0.03, _TENTH, 0.3)])
        # The choice after a batch forecasts the next one.
        missed = torch.zeros_like(choices[:, :, 0])
        missed[:, 1:] = (choices[:, :-1] * errors[1:]).sum(2)
        memory = choose(discount(missed.transpose(0, 1), _TENTH))
        return torch.einsum("tml,mtel->tel", memory, choices)


def discount(errors: Tensor, share: float) -> Tensor:
    """Sums [T, ...] after each batch of the errors [T, ...] so far, which remember about this share of the past."""
    scores, last = [], torch.zeros_like(errors[0])
    for number, error in enumerate(errors, 1):
        last = (1 - 1 / max(_FEWEST, share * number)) * last + error
        scores.append(last)
    return torch.stack(scores)


def choose(scores: Tensor) -> Tensor:
    """1 for the smallest in each column of [T, choices, columns], else 0."""
    return torch.zeros_like(scores).scatter_(1, scores.argmin(1, keepdim=True), 1.0)


@lru_cache(maxsize=1)
def find_errors(stream: Stream) -> dict[str, Tensor]:
    """Errors [T, momenta, layers] of each forecast of a batch, by what is forecast and how it is scored.

    The squared one of the mean in units of the variance; of the variance the squared one of its logarithm, the squared
    one in units of the variance, and QLIKE; averaged over a layer's channels. The first two batches' are 0.
    """
    names = ("mean", "logarithm", "square", "qlike")
    found = {name: torch.zeros(len(stream), len(MOMENTA), len(_layers(stream)), dtype=torch.float64) for name in names}
    bank = None
    gains = torch.stack([average.gains(stream) for average in BANK], dim=1)
    for index, (mean, var) in enumerate(stream.batches):
        batch = torch.stack((mean, var + stream.eps, (var + stream.eps).log()))[:, None]
        if bank is None:
            bank = batch.repeat(1, len(MOMENTA), 1)
            continue
        error, ratio = batch - bank, batch[1] / bank[1]
        unit = bank[1].median(0).values
        if index >= _ALIKE:
            scored = (error[0].square() / unit, error[2].square(), (error[1] / unit).square(), ratio - ratio.log() - 1)
            for name, value in zip(names, scored, strict=True):
                found[name][index] = torch.stack([own.mean(1) for own in value.split(_layers(stream), dim=1)], dim=1)
        bank += gains[index][:, None] * error
    return found


def _layers(stream: Stream) -> tuple[int, ...]:
    return stream.layers or (stream.start.shape[1],)
