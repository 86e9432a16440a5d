"""A bank of averages with 50 momenta, each a forecast of the next batch; the best recent forecast is given out.

A `Bank` is the state between two blocks of batches. `Bank.forecast` scores all its forecasts of the next `Block`, and
`Block.end` is the bank after it. Below them are the errors of the forecasts, the scores, and the averages' weights.

In the formulas m is a momentum, x a batch's value, and U the sum of the batches so far, each weighted by (1−m)^age. The
average is g·U, where the gain g makes the weights add up to 1. If the averages began from a layer's buffers, g is m,
and U begins with the buffers' value over m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

MOMENTA = 10 ** torch.linspace(-3, 0, 50, dtype=torch.float64, device="cpu")
# Forecasts of so many batches are scored at once: their products with one another cost as much as the bank's.
BATCHES_PER_BLOCK = 64
FEWEST = 4  # batches that a score remembers at least
_SHARE = 0.1  # of the past that a score remembers, if that is more
_ALIKE = 2  # the first batches, which all averages of the bank forecast alike
_NO_VARIANCE = torch.finfo(torch.float32).tiny  # variance + eps where both are 0


@dataclass(frozen=True)
class Bank:
    """Averages with 50 momenta from 0.001 to 1, and how well they have forecast the latest batches; all float64."""

    count: int  # batches so far
    warm: bool  # whether the averages began from a layer's buffers, as torch's own do; else from the first batch
    averages: Tensor  # [3, momenta, C], of the batches' mean, unbiased variance and log(variance + eps)
    scores: Tensor  # [momenta, 2·layers], discounted squared errors of the forecasts of means, then of logarithms
    chosen: Tensor  # [2, layers], index of the momentum for mean and variance
    eps: Tensor  # [C]
    layers: tuple[int, ...]  # how many of the channels belong to each layer, in order

    @staticmethod
    def begin(start: Tensor, updates: int, eps: Tensor, layers: tuple[int, ...]) -> Bank:
        """Make the bank before its first batch: `updates` other batches have made `start` [2, C] what it is."""
        is_finite = bool(start.isfinite().all())
        # A start that is not finite would stay in every average, because no gain below 1 forgets a NaN.
        warm = updates > 0 and is_finite
        # A bank that is not warm forgets these zeros with its first batch, whose gain is 1.
        first = _add_logarithm(start, eps) if warm else start.new_zeros(3, start.shape[1])
        averages = first[:, None].expand(-1, len(MOMENTA), -1)

        return Bank(
            count=0,
            warm=warm,
            averages=averages.contiguous(),
            scores=start.new_zeros(len(MOMENTA), 2 * len(layers)),
            chosen=torch.zeros(2, len(layers), dtype=torch.int64, device=start.device),
            eps=eps,
            layers=layers,
        )

    @property
    def room(self) -> int:
        """Number of batches that the next block takes at most: blocks end after 1, 2, 4, …, 64, 128, 192, … batches."""
        # This is the first power of two above the count.
        next_power = 1 << self.count.bit_length()
        next_block = (self.count // BATCHES_PER_BLOCK + 1) * BATCHES_PER_BLOCK
        return min(next_power, next_block) - self.count

    def state(self) -> Tensor:
        """Return the chosen mean and variance after `count` ≥ 1 batches, [2, C]."""
        return _choose(self.averages, self.chosen, self.layers)

    def forecast(self, batches: Tensor) -> Block:
        """Score the bank's forecasts of the next batches: [n, 2, C] with n ≤ room, all finite.

        Squared errors of the mean are in units of the variance that the bank estimates before the block. Blocks must be
        as long as `room`, except for a stream's last, since other blocks have other estimates.
        """
        series = _add_logarithm(batches.transpose(0, 1), self.eps)
        end = self.count + len(batches)
        gains = _list_gains(self.count, end + 1, self.warm).to(series.device)
        weights = _weigh_channels(self._estimate_variance(), self.layers)

        # Forecasts are scored by mean and logarithm: every other one of mean, variance and logarithm.
        averages = self.averages[::2]
        errors = _square_errors(averages, series[::2], weights, self.layers, gains)
        scores = _add_discounted(self.scores, errors, self.count)
        # On a tie argmin returns the first index, which is that of the smallest momentum.
        choices = scores.argmin(1).view(-1, 2, len(self.layers))
        return Block(
            bank=self,
            series=series,
            gains=gains,
            scores=scores,
            choices=choices,
        )

    def _estimate_variance(self) -> Tensor:
        """Return exp of the chosen average of log(variance + eps), [C]; 1 before the first batch."""
        rows = by_channel(self.chosen[1:], self.layers)
        logarithm = self.averages[2].gather(0, rows)[0]
        return logarithm.exp()


@dataclass(frozen=True)
class Block:
    """Consecutive batches, and the momenta that are chosen after each of them."""

    bank: Bank  # before them
    series: Tensor  # [3, n, C], their mean, unbiased variance and log(variance + eps)
    gains: Tensor  # [n + 1, momenta], of the batch before them and of each of them
    scores: Tensor  # [n, momenta, 2·layers], after each of them
    choices: Tensor  # [n, 2, layers], index of the momentum

    def __len__(self) -> int:
        return self.series.shape[1]

    def state(self, taken: int) -> Tensor:
        """Compute the chosen mean and variance after `taken` ≥ 1 of the batches, [2, C]."""
        # Of the 50 averages, only those that some layer has chosen are computed.
        momenta, index = self.choices[taken - 1].unique(return_inverse=True)
        averages = self._average(taken, momenta)
        return _choose(averages, index, self.bank.layers)

    def end(self) -> Bank:
        """Make the bank after all of the batches."""
        return replace(
            self.bank,
            count=self.bank.count + len(self),
            averages=self._average(len(self)),
            scores=self.scores[-1],
            chosen=self.choices[-1],
        )

    def _average(self, taken: int, momenta: Tensor | slice = slice(None)) -> Tensor:
        """Compute the bank's averages after `taken` of the batches, [3, momenta, C]."""
        # The powers begin with age 0, which is the latest batch, but the batches are in order of time.
        kept = _list_powers(self.series.device)[:taken].flip(0)
        weights = kept * self.gains[taken]
        weights = weights[:, momenta].T
        averages = weights @ self.series[:, :taken]

        # The average before the block has the weight that the batches leave over.
        rest = 1 - weights.sum(1, keepdim=True)
        before = self.bank.averages[:, momenta]
        return averages.addcmul_(rest, before)


def by_channel(values: Tensor, layers: Sequence[int]) -> Tensor:
    """Repeat each layer's value for its channels: [..., layers] → [..., C]."""
    return values.repeat_interleave(torch.tensor(layers, device=values.device), dim=-1)


def _choose(averages: Tensor, index: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Take the mean and variance [2, C] of the averages [3, momenta, C] at the momenta `index` [2, layers]."""
    rows = by_channel(index, layers)[:, None]
    return averages[:2].gather(1, rows)[:, 0]


def _add_logarithm(pairs: Tensor, eps: Tensor) -> Tensor:
    """Add log(variance + eps) as a third row to means and variances [2, ..., C]."""
    series = torch.cat((pairs, pairs[1:] + eps))
    # Without the clamp, a dead channel in a layer with eps 0 would have the logarithm −∞.
    series[2].clamp_(min=_NO_VARIANCE).log_()
    return series


# Errors of the forecasts


def _weigh_channels(unit: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Weigh the squared errors of mean, in units of `unit` [C], and logarithm for a layer's average: [2, C]."""
    channels = torch.tensor(layers, dtype=unit.dtype, device=unit.device)
    scales = torch.stack((1 / unit, torch.ones_like(unit)))
    # Dividing by the number of channels turns a sum over them into the layer's average.
    return scales / by_channel(channels, layers)


def _square_errors(bank: Tensor, series: Tensor, weights: Tensor, layers: tuple[int, ...], gains: Tensor) -> Tensor:
    """Compute squared errors [n, momenta, 2·layers] of the forecasts of each batch, one from each average before it.

    The squared error of the average g·U is g²·U·U − 2g·U·x + x·x. U·x and U·U follow from products of the block's
    batches with one another and with the bank before it; to make the bank for each batch would take many times as long.

    Args:
        bank: [2, momenta, C], the averages of mean and logarithm before the block.
        series: [2, n, C], the batches' mean and logarithm.
        weights: [2, C], of the channels' squared errors.
        gains: [n + 1, momenta], g of the batch before the block and of each of its batches.
    """
    # The last momentum is 1: its average is the latest batch, which all others are near to.
    centre = bank[:, -1:]  # otherwise the products would be large and cancel
    averages = bank - centre
    batches = series - centre

    weighted = batches * weights[:, None]
    batches_by_averages = _multiply(weighted, averages, layers)
    batches_by_batches = _multiply(weighted, batches, layers)
    averages_squared = _multiply(weights[:, None], averages.square(), layers)
    batches_squared = batches_by_batches.diagonal().T[:, None]

    scale = 1 / gains[:1].T  # from an average to its U
    product = _multiply_sums(batches_by_averages, batches_by_batches, scale)
    square = _square_sums(averages_squared, batches_squared, product, scale)

    gain = gains[:-1, :, None]
    return gain * (gain * square - 2 * product) + batches_squared


def _multiply(left: Tensor, right: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Sum products over each layer's channels: [2, a, C] and [2, b, C] → [a, b, 2·layers]."""
    # Layers have different numbers of channels, so that each needs a product of its own.
    parts = zip(left.split(layers, dim=-1), right.split(layers, dim=-1), strict=True)
    products = [one @ other.mT for one, other in parts]
    return torch.stack(products, dim=3).permute(1, 2, 0, 3).flatten(2)


def _multiply_sums(batches_by_averages: Tensor, batches_by_batches: Tensor, scale: Tensor) -> Tensor:
    """Compute U·x for each batch, [n, momenta, 2·layers], from U before the block and the batches since."""
    n = len(batches_by_batches)
    device = batches_by_batches.device
    powers = _list_powers(device)[:n, :, None]
    since = _list_ages(device)[:n, :, :n]
    kept = powers * scale
    before = kept * batches_by_averages
    return before + since @ batches_by_batches


def _square_sums(averages_squared: Tensor, batches_squared: Tensor, product: Tensor, scale: Tensor) -> Tensor:
    """Compute U·U before each batch, [n, momenta, 2·layers]: with a batch x, U becomes (1−m)·U + x."""
    kept = _list_powers(product.device)[1][:, None]  # 1−m
    first = scale.square() * averages_squared
    product_before = product[:-1]
    mixed = 2 * kept * product_before
    added = mixed + batches_squared[:-1]

    square = torch.cat((first, added))
    factor = kept.square()
    # This is the only loop over batches, because each square needs the one before it.
    for before, here in pairwise(square):
        here.addcmul_(before, factor)
    return square


# Scores


def _add_discounted(scores: Tensor, errors: Tensor, count: int) -> Tensor:
    """Add the errors to the scores before, discounted: [n, momenta, 2·layers], after each batch."""
    last = count + len(errors)
    discounts = _list_discounts(count, last).to(errors.device)
    by_batch = discounts[:, None, None]
    # A block has 64 batches at most, so that this product is 0.75^64, about 1e-8, or more.
    discount = by_batch.cumprod(0)

    number = torch.arange(count + 1, last + 1, device=errors.device)
    is_scored = number[:, None, None] > _ALIKE
    # Each error is divided by the discount up to its batch, and the sum multiplied by it again. So one cumulative sum
    # takes the place of a loop.
    added = torch.where(is_scored, errors / discount, 0.0)
    return discount * (scores + added.cumsum(0))


def _list_discounts(first: int, last: int) -> Tensor:
    """List the share of the past that a score keeps at each batch after the first `first`, [last − first]."""
    number = torch.arange(first + 1, last + 1, dtype=torch.float64, device="cpu")
    share = _SHARE * number
    remembered = share.clamp(min=FEWEST)
    return 1 - 1 / remembered


# Weights of the batches in the averages


def _list_gains(first: int, last: int, warm: bool) -> Tensor:
    """List the gains of batches `first` to `last` − 1, counted from 1 (0 as 1), [last − first, momenta].

    If the averages did not begin warm they are those of debiased EMAs.
    """
    if warm:
        return MOMENTA.expand(last - first, -1)
    number = torch.arange(first, last, dtype=torch.float64, device="cpu")
    # Number 0, before the first batch, would give NaN at momentum 1. Any gain will do there, because the
    # averages are still 0.
    number = number.clamp(min=1)[:, None]
    weight = -torch.expm1(number * torch.log1p(-MOMENTA))  # of all batches so far: 1 − (1−m)^number
    # The first gain is 1, which rounding could exceed.
    return (MOMENTA / weight).clamp(max=1)


@cache
def _list_powers(device: torch.device) -> Tensor:
    """List (1−m)^age, [block, momenta]."""
    age = torch.arange(BATCHES_PER_BLOCK, device="cpu")[:, None]
    return ((1 - MOMENTA) ** age).to(device)


@cache
def _list_ages(device: torch.device) -> Tensor:
    """List the weight in U before one batch of an earlier one of the block, else 0: [block, momenta, block]."""
    number = torch.arange(BATCHES_PER_BLOCK, device=device)
    between = number[:, None] - 1 - number  # batches that lie between the two
    # The clamp only keeps the index valid: where the difference is negative, the weight is set to 0 below.
    powers = _list_powers(device).T[:, between.clamp(min=0)].transpose(0, 1)
    return torch.where(between[:, None] >= 0, powers, 0.0)
