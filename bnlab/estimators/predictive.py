"""An estimator that chooses its momentum by how well a bank of averages has forecast the next batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators.base import Estimator, Stream
from bnlab.estimators.example import after  # noqa: F401 (in the docstrings)

_MOMENTA = 10 ** torch.linspace(-3, 0, 50, dtype=torch.float64, device="cpu")
_KEPT = 1 - _MOMENTA
_BLOCK = 64  # batches whose forecasts are scored at once: their products with one another cost as much as the bank's
_ALIKE = 2  # the first batches, which all averages of the bank forecast alike
_NO_VARIANCE = torch.finfo(torch.float32).tiny  # variance + eps where both are 0
_FEWEST, _SHARE = 4, 0.1  # batches that a score remembers: so many, or this share of the past if that is more


@dataclass(frozen=True)
class Predictive(Estimator):
    """Of 50 debiased EMAs, with momenta from 0.001 to 1, the one that has forecast the latest batches best.

    After k batches each average is a forecast of batch k+1, which is measured on the very weights that the average is
    to describe. The noise of that batch does not depend on the forecast and adds the same to the squared error of every
    momentum, so that the smallest error is that of the average nearest to the statistic of the current weights. After
    each batch the momentum is chosen again, for each layer, for mean and variance apart:

    - the error is that of the mean, in standard deviations; for the variance that of log(variance+eps), averaged in the
      same way, whose noise does not depend on its level. (The deviation is that of the average of these logarithms
      that was chosen after 1, 2, 4, …, 64 batches, then after each 64th.)
    - its square is averaged over the layer's channels, and over about the last tenth of the past: the discount is
      1 − 1/max(4, k/10). The first two batches say nothing about the momentum: the smallest is taken.

    What comes out are averages of the means and of the unbiased variances, without bias while the statistics stand
    still. A warm start is not used. A channel is NaN from its first batch with a NaN or infinite value on, and is no
    longer scored.

    Assumes no model of the drift, but independent batches: drawn without replacement they favour slow averages a
    little. It comes near the statistic of batches that normalize with their own moments (upstream="batch"), which is
    not the exact one. The choice jumps between momenta, and comes as late as its score remembers. Costs less than 64
    EMAs that are read after every step, several times as much as 64 EMAs that are read once.

    Source: discounted prequential selection (Dawid 1984) over a bank of exponentially weighted averages (optimal for a
    random walk plus noise: Muth 1960); noise in what is forecast leaves the ranking as it is (Patton 2011). Ours is the
    application to batch norm only.

    >>> after(Predictive(), 0, 1, 2)
    [[0.0, 1.0], [1.0, 2.0], [2.0005, 5.0015]]
    """

    name: ClassVar[str] = "predictive"

    def gains(self, stream: Stream) -> Tensor:
        """The chosen momentum's weight of the newest batch; between two momenta what is given out jumps besides."""
        gains = torch.empty_like(stream.batches)
        for block in _blocks(stream):
            own = _gains(block.first + 1, block.last + 1).gather(1, block.choices.flatten(1))
            gains[block.first : block.last] = _by_channel(own.view_as(block.choices), stream)
        return gains

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor:
        states = stream.start.repeat(len(positions), 1, 1)
        rows: dict[int, list[int]] = {}
        for row, position in enumerate(positions):
            rows.setdefault(position, []).append(row)
        for block in _blocks(stream):
            for position in range(block.first + 1, block.last + 1):
                if position in rows:
                    states[rows[position]] = block.state(position, stream)
        return states


@dataclass(frozen=True)
class _Block:
    """Consecutive batches, the bank before them, and what is chosen after each of them.

    Args:
        first: batches before the block.
        series: [3, n, C], the batches' mean, unbiased variance and log(variance + eps); 0 in channels that are lost.
        bank: [3, momenta, C], their averages after `first` batches.
        alive: [2, C], channels whose mean or variance has been finite up to the end.
        choices: [n, 2, layers], index of the momentum.
    """

    first: int
    series: Tensor
    bank: Tensor
    alive: Tensor
    choices: Tensor

    @property
    def last(self) -> int:
        return self.first + self.series.shape[1]

    def averages(self, position: int, momenta: Tensor | slice = slice(None)) -> Tensor:
        """[3, momenta, C], those of the bank after `position` batches."""
        taken = position - self.first
        weights = (_powers()[:taken].flip(0) * _gains(position, position + 1))[:, momenta].T
        averages = weights @ self.series[:, :taken]
        return averages.addcmul_(1 - weights.sum(1, keepdim=True), self.bank[:, momenta])

    def state(self, position: int, stream: Stream) -> Tensor:
        """[2, C], what is given out after `position` batches."""
        momenta, index = self.choices[position - self.first - 1].unique(return_inverse=True)
        averages = self.averages(position, momenta)[:2]
        return torch.where(self.alive, averages.gather(1, _by_channel(index, stream)[:, None])[:, 0], torch.nan)


def _blocks(stream: Stream) -> Iterator[_Block]:
    """The stream in blocks that end after 1, 2, 4, …, 64, 128, 192, … batches, and before one that loses a channel."""
    channels = stream.start.shape[1]
    alive = torch.ones(2, channels, dtype=torch.bool, device="cpu")
    bank = stream.start.new_zeros(3, len(_MOMENTA), channels)  # the first batch takes its place: gain 1
    layers = stream.layers or (channels,)
    scores = stream.start.new_zeros(len(_MOMENTA), 2 * len(layers))
    chosen = torch.zeros(2, len(layers), dtype=torch.int64, device="cpu")
    unit, first = torch.ones_like(stream.start[0]), 0
    while first < len(stream):
        batches = stream.batches[first : min(1 << first.bit_length(), (first // _BLOCK + 1) * _BLOCK)].transpose(0, 1)
        if not batches.sum().isfinite():
            finite = batches.isfinite()
            alive = alive & finite[:, 0]
            batches = batches[:, : (finite | ~alive[:, None]).all(2).all(0).cumprod(0).sum()]
        series = torch.cat((batches, batches[1:] + stream.eps))
        series[2].clamp_(min=_NO_VARIANCE).log_()
        if not alive.all():
            series, bank = (torch.where(alive[[0, 1, 1], None], values, 0.0) for values in (series, bank))
        if first & (first - 1) == 0 or first % _BLOCK == 0:  # not where a channel is lost, maybe another layer's
            unit = bank[2].gather(0, _by_channel(chosen[1:], stream))[0].exp()
        errors = _errors(bank[::2], series[::2], _weights(unit, alive, layers), layers, first)
        scores = _discount(scores, errors, first)
        block = _Block(first, series, bank, alive, scores.argmin(1).view(-1, 2, len(layers)))
        yield block
        bank, scores, chosen, first = block.averages(block.last), scores[-1], block.choices[-1], block.last


def _by_channel(values: Tensor, stream: Stream) -> Tensor:
    """[..., layers] → [..., C]."""
    layers = torch.tensor(stream.layers or (stream.start.shape[1],), device="cpu")
    return values.repeat_interleave(layers, dim=-1)


def _weights(unit: Tensor, alive: Tensor, layers: tuple[int, ...]) -> Tensor:
    """[2, C], of the squared errors of mean and logarithm in a layer's average, the mean's in units of `unit` [C]."""
    scored = alive & alive[1]  # without a variance a mean has no unit
    shares = [part.sum(1, keepdim=True).clamp(min=1).expand_as(part) for part in scored.split(layers, dim=1)]
    return scored * torch.stack((1 / unit, torch.ones_like(unit))) / torch.cat(shares, dim=1)


def _errors(bank: Tensor, series: Tensor, weights: Tensor, layers: tuple[int, ...], first: int) -> Tensor:
    """Squared errors [n, momenta, 2·layers] of the forecasts of each batch, one from each average before it.

    With U the sum of the batches x before, weighted by (1−m)^age, the average is g·U and its squared error
    g²·U·U − 2g·U·x + x·x. U·x and U·U follow from the products of the block's batches with one another and with the
    bank before it: so the bank itself need not be made for each batch, which would take many times as long.
    """
    centre = bank[:, -1:]  # otherwise the products would be large and cancel
    x, averages = series - centre, bank - centre
    weighted, spread = x * weights[:, None], averages.square()
    with_bank, with_others, squares = [], [], []
    for end, channels in zip(accumulate(layers), layers, strict=True):
        own = slice(end - channels, end)
        with_bank.append(weighted[..., own] @ averages[..., own].mT)
        with_others.append(weighted[..., own] @ x[..., own].mT)
        squares.append(weights[:, None, own] @ spread[..., own].mT)
    n, kept, sums = x.shape[1], _KEPT[:, None], 1 / _gains(first, first + 1).T
    powers = _powers()[:n, :, None] * sums  # of U before the block, what is left of it before each batch
    others = _side_by_side(with_others)
    product = powers * _side_by_side(with_bank) + _ages()[:n, :, :n] @ others
    own_square = others.diagonal().T[:, None]
    square = torch.cat(((sums.square() * _side_by_side(squares)), 2 * kept * product[:-1] + own_square[:-1]))
    factor = kept.square()
    for before, here in pairwise(square):
        here.addcmul_(before, factor)  # U becomes (1−m)·U + x
    gain = _gains(first, first + n)[:, :, None]
    return gain * (gain * square - 2 * product) + own_square


def _side_by_side(products: list[Tensor]) -> Tensor:
    """[2, a, b] of each layer as [a, b, 2·layers]."""
    return torch.stack(products, dim=3).permute(1, 2, 0, 3).flatten(2)


def _discount(scores: Tensor, errors: Tensor, first: int) -> Tensor:
    """Scores [n, momenta, 2·layers] after each batch: those before, discounted, plus the errors."""
    number = torch.arange(first + 1, first + len(errors) + 1, dtype=torch.float64, device="cpu")[:, None, None]
    discount = (1 - 1 / (_SHARE * number).clamp(min=_FEWEST)).cumprod(0)
    return discount * (scores + torch.where(number > _ALIKE, errors / discount, 0.0).cumsum(0))


def _gains(first: int, last: int) -> Tensor:
    """[last − first, momenta], the debiased EMAs' for batches `first` to `last` − 1, counted from 1; 0 is as 1."""
    number = torch.arange(first, last, dtype=torch.float64, device="cpu").clamp(min=1)[:, None]
    return (_MOMENTA / -torch.expm1(number * torch.log1p(-_MOMENTA))).clamp(max=1)


@cache
def _powers() -> Tensor:
    """[block, momenta], (1−m)^age."""
    return _KEPT ** torch.arange(_BLOCK, device="cpu")[:, None]


@cache
def _ages() -> Tensor:
    """[block, momenta, block], the weight in U before one batch of an earlier one of the block; else 0."""
    number = torch.arange(_BLOCK, device="cpu")
    between = number[:, None] - 1 - number
    return torch.where(between[:, None] >= 0, _powers().T[:, between.clamp(min=0)].transpose(0, 1), 0.0)
