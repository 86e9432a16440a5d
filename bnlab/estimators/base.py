"""A stream of batch moments, what an estimator makes of it, and the fold that runs many estimators at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.arguments import check_number

BLOCK = 256  # steps that are folded in one matrix product: enough to be bound by arithmetic, not by memory
_FORGOTTEN = 1e-40  # a weight so small that batches before it are left out
_TORCH_EPS = torch.tensor(1e-5, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, eq=False)
class Stream:
    """A recorded stream of batch moments, channels of all layers side by side; everything float64.

    Args:
        start: [2, C], the running mean and variance before the first batch.
        batches: [T, 2, C], each batch's mean and *unbiased* variance (what torch's buffers average).
        counts: [T, C], values in each channel of each batch (N·H·W).
        updates: batches that the buffers had seen before (`num_batches_tracked`).
        eps: [C], each layer's own.
        layers: how many of the channels belong to each layer, in order; () is one layer.
    """

    start: Tensor
    batches: Tensor
    counts: Tensor
    updates: int = 0
    eps: Tensor = _TORCH_EPS
    layers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.batches.shape[0]

    @property
    def steps(self) -> Tensor:
        """[T], 1 for the first recorded batch."""
        return torch.arange(1, len(self) + 1, dtype=torch.float64, device="cpu")

    @cached_property
    def biased(self) -> Tensor:
        """[T, 2, C], each batch's mean and variance with ddof 0."""
        mean, var = self.batches.unbind(1)
        return torch.stack((mean, var * (self.counts - 1) / self.counts), dim=1)

    @cached_property
    def deviations(self) -> Tensor:
        """[T, 2, C], each batch's mean and root of variance (ddof 0) + eps."""
        mean, var = self.biased.unbind(1)
        return torch.stack((mean, (var + self.eps).sqrt()), dim=1)

    @cached_property
    def shift(self) -> Tensor:
        """[C], the first batch's mean: squares are taken about it, so that nothing cancels where mean ≫ deviation."""
        return (self.batches[0, 0] if len(self) else self.start[0]).nan_to_num(0.0, 0.0, 0.0)

    @cached_property
    def squares(self) -> Tensor:
        """[T, 2, C], each batch's mean and mean square about `shift`."""
        return self.about_shift(self.biased)

    def about_shift(self, pairs: Tensor) -> Tensor:
        """Mean and variance [..., 2, C] as mean and mean square about `shift`."""
        mean, var = pairs.unbind(-2)
        return torch.stack((mean, var + (mean - self.shift).square()), dim=-2)

    def from_squares(self, pairs: Tensor) -> Tensor:
        """The inverse of `about_shift`."""
        mean, square = pairs.unbind(-2)
        return torch.stack((mean, (square - (mean - self.shift).square()).clamp(min=0)), dim=-2)


@dataclass(frozen=True)
class Estimator(ABC):
    """`state ← state + gain·(value − state)` over the batches, from `begin`, then `read`.

    Subclasses are frozen dataclasses whose fields are their parameters; `gains` is all that one needs.
    """

    name: ClassVar[str]
    # The averages are averaged once more, with the same gains; `read` gets [..., 2, 2, C], once and twice.
    twice: ClassVar[bool] = False

    @abstractmethod
    def gains(self, stream: Stream) -> Tensor:
        """Weight of the new batch at each step, in [0, 1]: float64 [T], or [T, C] or [T, 2, C] where they differ."""

    def values(self, stream: Stream) -> Tensor:
        """[T, 2, C], what is averaged. Estimators that return the same tensor (the stream's) are folded together."""
        return stream.batches

    def begin(self, stream: Stream) -> Tensor:
        """[2, C], the start in terms of the values."""
        return stream.start

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        """Mean and variance [..., 2, C] from averaged values [..., 2, C]."""
        return states

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor | None:
        """States [positions, 2, C] of what is no such recursion; None: fold the gains."""
        return None

    @property
    def label(self) -> str:
        """Canonical name that tells every parameter but the momentum, e.g. `window(k=20,pooled=False)`."""
        own = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "momentum"]
        return self.name + (f"({','.join(own)})" if own else "")


def check_momentum(momentum: float) -> None:
    """TypeError unless it is a number, ValueError unless 0 < momentum ≤ 1."""
    message = f"momentum={momentum!r}: it is the weight of the new batch and lies in (0, 1]"
    check_number(momentum, lambda m: 0 < m <= 1, f"{message}; for a decay use EMA.from_decay")


def fold(estimators: Sequence[Estimator], stream: Stream, positions: Sequence[int]) -> Tensor:
    """Every estimator after each number of batches in `positions` (0 is the start, as it is).

    Returns:
        float64 [estimators, positions, 2, C].
    """
    result = stream.start.new_empty(len(estimators), len(positions), *stream.start.shape)
    # Estimators whose gains all channels share go through one matrix product, with others of the same values.
    banks: dict[tuple[int, ...], tuple[Tensor, list[int], list[Tensor]]] = {}
    for i, estimator in enumerate(estimators):
        states = estimator.direct(stream, positions)
        if states is not None:
            result[i] = estimator.read(states, stream)
            continue
        values = estimator.values(stream)
        gains = _collapse_shared(_check_gains(estimator, estimator.gains(stream), stream))
        key = (id(values), estimator.twice) if gains.dim() == 1 else (i,)
        _, members, bank = banks.setdefault(key, (values, [], []))
        members.append(i)
        bank.append(gains)
    for values, members, bank in banks.values():
        begin = torch.stack([estimators[i].begin(stream) for i in members])
        folded = _fold(bank, begin, values, positions, estimators[members[0]].twice)
        for i, states in zip(members, folded, strict=True):
            result[i] = estimators[i].read(states, stream)
    result[:, [p == 0 for p in positions]] = stream.start
    return result


def _check_gains(estimator: Estimator, gains: Tensor, stream: Stream) -> Tensor:
    """ValueError unless the gains are what `Estimator.gains` promises."""
    steps, channels = stream.counts.shape
    shapes = [(steps,), (steps, channels), (steps, 2, channels)]
    if not isinstance(gains, Tensor) or gains.dtype != torch.float64 or gains.shape not in shapes:
        found = f"{gains.dtype} {tuple(gains.shape)}" if isinstance(gains, Tensor) else f"a {type(gains).__name__}"
        allowed = f"[{steps}], [{steps}, {channels}] or [{steps}, 2, {channels}]"
        raise ValueError(f"{estimator.label}: gains returned {found}; return a float64 tensor {allowed}")
    if steps and not (gains.amin() >= 0 and gains.amax() <= 1):  # also where one is NaN
        raise ValueError(f"{estimator.label}: gains from {gains.amin():g} to {gains.amax():g}; they lie in [0, 1]")
    return gains


def _collapse_shared(gains: Tensor) -> Tensor:
    """[T] where all channels have the same gains."""
    flat = gains if gains.dim() == 1 else gains.flatten(1)
    return flat[:, 0] if gains.dim() > 1 and bool((flat == flat[:, :1]).all()) else gains


def _fold(bank: list[Tensor], begin: Tensor, values: Tensor, positions: Sequence[int], twice: bool) -> Tensor:
    """[settings, positions, 2, C], with `twice` [settings, positions, 2, 2, C].

    Of settings of the same values with gains [T] each, or of one setting with gains for each channel.
    """
    states = [begin] * (1 + twice)
    result = begin.new_empty(len(bank), len(positions), len(states), *begin.shape[1:])
    # In a product 0·NaN is NaN: what a gain of 1 forgets is forgotten step by step there.
    finite = values.flatten(1).isfinite().all(1)
    rows: dict[int, list[int]] = {0: []}
    for row, position in enumerate(positions):
        rows.setdefault(position, []).append(row)
    result[:, rows[0]] = torch.stack(states, dim=1)[:, None]
    for first, last in pairwise(sorted(rows)):
        if bank[0].dim() == 1 and finite[first:last].all() and all(bool(s.isfinite().all()) for s in states):
            states = _product(states, bank, values, first, last)
        else:
            for t in range(first, last):
                states = _step(states, torch.stack([gains[t] for gains in bank]), values[t])
        result[:, rows[last]] = torch.stack(states, dim=1)[:, None]
    return result if twice else result[:, :, 0]


def _product(states: list[Tensor], bank: list[Tensor], values: Tensor, first: int, last: int) -> list[Tensor]:
    """Steps first to last at once: what is kept of the state, plus weights @ values.

    Block by block backwards in time, as far as a setting remembers: a large momentum is done after a few blocks.
    """
    flat = values.flatten(1)
    sums = [torch.zeros_like(state).flatten(1) for state in states]
    rest = flat.new_ones(len(bank), 1)  # what remains at `last` of what is taken up before `end`
    ahead = torch.zeros_like(rest)  # sum of the gains after `end`
    end = last
    while end > first and len(rows := (rest > _FORGOTTEN).squeeze(1).nonzero().squeeze(1)):
        begin = max(end - BLOCK, first)
        gains = torch.stack([bank[i][begin:end] for i in rows.tolist()])
        # kept[:, j]: what remains at `last` of what is taken up before step begin+j.
        kept = (1 - gains).flip(1).cumprod(1).flip(1) * rest[rows]
        later = gains.flip(1).cumsum(1).flip(1) + ahead[rows]
        weights = gains * torch.cat((kept[:, 1:], rest[rows]), dim=1)
        # Taken up at step j and, once averaged, again at any step from j on, with the same factors 1−gain after j: the
        # second weight is the first, multiplied by the sum of the gains from j on.
        for total, weight in zip(sums, (weights, weights * later), strict=False):
            total[rows] = total[rows].addmm_(weight, flat[begin:end])
        rest[rows], ahead[rows], end = kept[:, :1], later[:, :1], begin
    once = states[0].flatten(1)
    sums[0].addcmul_(once, rest)
    if len(states) == 2:
        sums[1].addcmul_(states[1].flatten(1), rest).addcmul_(once, rest * ahead)
    return [total.view_as(state) for total, state in zip(sums, states, strict=True)]


def _step(states: list[Tensor], gain: Tensor, value: Tensor) -> list[Tensor]:
    """One step, with gains [S] or [1, C] or [1, 2, C]."""
    gain = gain[:, None, None] if gain.dim() == 1 else gain[:, None] if gain.dim() == 2 else gain
    later = []
    for state in states:  # the second one averages the first
        value = torch.where(gain == 1, value, torch.lerp(state, value.expand_as(state), gain))
        later.append(value)
    return later
