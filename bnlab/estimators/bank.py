"""A bank of averages, each a forecast of the next batch, and which of them has forecast the latest ones best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

MOMENTA = 10 ** torch.linspace(-3, 0, 50, dtype=torch.float64, device="cpu")
BLOCK = 64  # batches whose forecasts are scored at once: their products with one another cost as much as the bank's
_ALIKE = 2  # the first batches, which all averages of the bank forecast alike
_NO_VARIANCE = torch.finfo(torch.float32).tiny  # variance + eps where both are 0
FEWEST, _SHARE = 4, 0.1  # batches that a score remembers: so many, or this share of the past if that is more


@dataclass(frozen=True)
class Bank:
    """Averages with 50 momenta from 0.001 to 1, and how well they have forecast the latest batches; all float64."""

    count: int  # batches so far
    warm: bool  # whether the averages began from a layer's buffers, as torch's own do; else from the first batch
    averages: Tensor  # [3, momenta, C], of the batches' mean, unbiased variance and log(variance + eps)
    scores: Tensor  # [momenta, 2·layers], discounted squared errors of the forecasts of means, then of logarithms
    chosen: Tensor  # [2, layers], index of the momentum for mean and variance
    unit: Tensor  # [C], the variance in whose units squared errors of the mean are
    eps: Tensor  # [C]
    layers: tuple[int, ...]  # how many of the channels belong to each layer, in order

    @staticmethod
    def begin(start: Tensor, updates: int, eps: Tensor, layers: tuple[int, ...]) -> Bank:
        """Before the first batch: `updates` other batches have made `start` [2, C] what it is."""
        warm = updates > 0 and bool(start.isfinite().all())
        first = _add_logarithm(start, eps) if warm else start.new_zeros(3, start.shape[1])
        return Bank(
            count=0,
            warm=warm,
            averages=first[:, None].expand(-1, len(MOMENTA), -1).contiguous(),
            scores=start.new_zeros(len(MOMENTA), 2 * len(layers)),
            chosen=torch.zeros(2, len(layers), dtype=torch.int64, device=start.device),
            unit=torch.ones_like(start[0]),
            eps=eps,
            layers=layers,
        )

    @property
    def errors(self) -> Tensor:
        """[momenta, 2·layers], the mean of the squared errors that the scores remember; NaN before the third batch."""
        if self.count <= _ALIKE:
            return self.scores * math.nan
        # The newest error has weight 1, the one before it the last discount, and so on.
        return self.scores / (1 + float(_discounts(_ALIKE + 1, self.count).flip(0).cumprod(0).sum()))

    @property
    def room(self) -> int:
        """How many batches the next block takes at most: blocks end after 1, 2, 4, …, 64, 128, 192, … batches."""
        return min(1 << self.count.bit_length(), (self.count // BLOCK + 1) * BLOCK) - self.count

    def state(self) -> Tensor:
        """[2, C], what is given out after `count` ≥ 1 batches."""
        return self.averages[:2].gather(1, by_channel(self.chosen, self.layers)[:, None])[:, 0]

    def forecast(self, batches: Tensor) -> Block:
        """Score the bank's forecasts of the next batches: [n, 2, C] with n ≤ room, all finite."""
        count, bank = self.count, self.averages
        series = _add_logarithm(batches.transpose(0, 1), self.eps)
        unit = self.unit
        if count & (count - 1) == 0 or count % BLOCK == 0:  # where a block begins, and not within it
            unit = bank[2].gather(0, by_channel(self.chosen[1:], self.layers))[0].exp()
        gains = _gains(count, count + len(batches) + 1, self.warm).to(bank.device)
        errors = _errors(bank[::2], series[::2], _weights(unit, self.layers), self.layers, gains)
        scores = _discount(self.scores, errors, count)
        return Block(self, series, unit, gains, scores, scores.argmin(1).view(-1, 2, len(self.layers)))


@dataclass(frozen=True)
class Block:
    """Consecutive batches, and what is chosen after each of them."""

    bank: Bank  # before them
    series: Tensor  # [3, n, C], their mean, unbiased variance and log(variance + eps)
    unit: Tensor  # [C], the variance in whose units squared errors of the mean are
    gains: Tensor  # [n + 1, momenta], of the batch before them and of each of them
    scores: Tensor  # [n, momenta, 2·layers], after each of them
    choices: Tensor  # [n, 2, layers], index of the momentum

    def __len__(self) -> int:
        return self.series.shape[1]

    @property
    def chosen_gains(self) -> Tensor:
        """[n, 2, layers], the weight of each batch in the average that is chosen after it."""
        return self.gains[1:].gather(1, self.choices.flatten(1)).view_as(self.choices)

    def state(self, taken: int) -> Tensor:
        """[2, C], what is given out after `taken` ≥ 1 of the batches."""
        momenta, index = self.choices[taken - 1].unique(return_inverse=True)
        averages = self._average(taken, momenta)[:2]
        return averages.gather(1, by_channel(index, self.bank.layers)[:, None])[:, 0]

    def end(self) -> Bank:
        """The bank after all of the batches."""
        bank, n = self.bank, len(self)
        last, averages = replace(bank, count=bank.count + n, unit=self.unit), self._average(n)
        return replace(last, averages=averages, scores=self.scores[-1], chosen=self.choices[-1])

    def _average(self, taken: int, momenta: Tensor | slice = slice(None)) -> Tensor:
        """[3, momenta, C], those of the bank after `taken` of the batches."""
        weights = (_powers(self.series.device)[:taken].flip(0) * self.gains[taken])[:, momenta].T
        averages = weights @ self.series[:, :taken]
        return averages.addcmul_(1 - weights.sum(1, keepdim=True), self.bank.averages[:, momenta])


def by_channel(values: Tensor, layers: Sequence[int]) -> Tensor:
    """[..., layers] → [..., C]."""
    return values.repeat_interleave(torch.tensor(layers, device=values.device), dim=-1)


def _add_logarithm(pairs: Tensor, eps: Tensor) -> Tensor:
    """Means and variances [2, ..., C] with log(variance + eps) as a third row."""
    series = torch.cat((pairs, pairs[1:] + eps))
    series[2].clamp_(min=_NO_VARIANCE).log_()
    return series


def _weights(unit: Tensor, layers: tuple[int, ...]) -> Tensor:
    """[2, C], of the squared errors of mean and logarithm in a layer's average, the mean's in units of `unit` [C]."""
    channels = by_channel(torch.tensor(layers, dtype=unit.dtype, device=unit.device), layers)
    return torch.stack((1 / unit, torch.ones_like(unit))) / channels


def _errors(bank: Tensor, series: Tensor, weights: Tensor, layers: tuple[int, ...], gains: Tensor) -> Tensor:
    """Squared errors [n, momenta, 2·layers] of the forecasts of each batch, one from each average before it.

    With U the sum of the batches x before, weighted by (1−m)^age, the average is g·U and its squared error
    g²·U·U − 2g·U·x + x·x. U·x and U·U follow from products of the block's batches with one another and the bank
    before it; to make the bank for each batch would take many times as long.
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
    n, kept, sums = x.shape[1], _powers(x.device)[1][:, None], 1 / gains[:1].T
    powers = _powers(x.device)[:n, :, None] * sums  # of U before the block, what is left of it before each batch
    others = _side_by_side(with_others)
    product = powers * _side_by_side(with_bank) + _ages(x.device)[:n, :, :n] @ others
    own_square = others.diagonal().T[:, None]
    square = torch.cat(((sums.square() * _side_by_side(squares)), 2 * kept * product[:-1] + own_square[:-1]))
    factor = kept.square()
    for before, here in pairwise(square):
        here.addcmul_(before, factor)  # U becomes (1−m)·U + x
    gain = gains[:-1, :, None]
    return gain * (gain * square - 2 * product) + own_square


def _side_by_side(products: list[Tensor]) -> Tensor:
    """[2, a, b] of each layer as [a, b, 2·layers]."""
    return torch.stack(products, dim=3).permute(1, 2, 0, 3).flatten(2)


def _discount(scores: Tensor, errors: Tensor, count: int) -> Tensor:
    """Scores [n, momenta, 2·layers] after each batch: those before, discounted, plus the errors."""
    number = torch.arange(count + 1, count + len(errors) + 1, device=errors.device)[:, None, None]
    discount = _discounts(count, count + len(errors)).to(errors.device)[:, None, None].cumprod(0)
    return discount * (scores + torch.where(number > _ALIKE, errors / discount, 0.0).cumsum(0))


def _discounts(first: int, last: int) -> Tensor:
    """[last − first], of what a score remembers of the past, at each batch after the first `first`."""
    number = torch.arange(first + 1, last + 1, dtype=torch.float64, device="cpu")
    return 1 - 1 / (_SHARE * number).clamp(min=FEWEST)


def _gains(first: int, last: int, warm: bool) -> Tensor:
    """[last − first, momenta], for batches `first` to `last` − 1, counted from 1 (0 as 1); cold: of debiased EMAs."""
    if warm:
        return MOMENTA.expand(last - first, -1)
    number = torch.arange(first, last, dtype=torch.float64, device="cpu").clamp(min=1)[:, None]
    return (MOMENTA / -torch.expm1(number * torch.log1p(-MOMENTA))).clamp(max=1)


@cache
def _powers(device: torch.device) -> Tensor:
    """[block, momenta], (1−m)^age."""
    return ((1 - MOMENTA) ** torch.arange(BLOCK, device="cpu")[:, None]).to(device)


@cache
def _ages(device: torch.device) -> Tensor:
    """[block, momenta, block], the weight in U before one batch of an earlier one of the block; else 0."""
    number = torch.arange(BLOCK, device=device)
    between = number[:, None] - 1 - number
    earlier = _powers(device).T[:, between.clamp(min=0)].transpose(0, 1)
    return torch.where(between[:, None] >= 0, earlier, 0.0)
