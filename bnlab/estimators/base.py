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

# Steps that are folded in one matrix product: long enough to keep it compute-bound, short enough to stay in cache.
BLOCK = 256

_TORCH_EPS = torch.tensor(1e-5, dtype=torch.float64)


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
        return torch.arange(1, len(self) + 1, dtype=torch.float64)

    # What can be averaged, made once for all estimators.

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
    """A running estimator: `state ← state + gain·(value − state)` over the batches, from `begin`, then `read`.

    Subclasses are frozen dataclasses whose fields are their parameters; `gains` is all that one needs.
    """

    name: ClassVar[str]
    # The averages are averaged once more, with the same gains; `read` gets [..., 2, 2, C], once and twice.
    twice: ClassVar[bool] = False

    @abstractmethod
    def gains(self, stream: Stream) -> Tensor:
        """Weight of the new batch at each step: float64 [T], or [T, C] or [T, 2, C] where they differ."""

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
    """ValueError unless 0 < momentum ≤ 1."""
    if not 0 < momentum <= 1:
        raise ValueError(
            f"momentum={momentum!r}: it is the weight of the new batch and lies in (0, 1]; "
            "for a decay use EMA.from_decay"
        )


def fold(estimators: Sequence[Estimator], stream: Stream, positions: Sequence[int]) -> Tensor:
    """Every estimator after each number of batches in `positions` (0 is the start, as it is).

    Returns:
        float64 [estimators, positions, 2, C].
    """
    result = torch.empty(len(estimators), len(positions), *stream.start.shape, dtype=torch.float64)
    # Estimators whose gains all channels share go through one matrix product, with others of the same values.
    banks: dict[tuple[int, ...], tuple[Tensor, list[int], list[Tensor]]] = {}
    for i, estimator in enumerate(estimators):
        states = estimator.direct(stream, positions)
        if states is not None:
            result[i] = estimator.read(states, stream)
            continue
        values, gains = estimator.values(stream), _shared(estimator.gains(stream))
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


def _shared(gains: Tensor) -> Tensor:
    """[T] where all channels have the same gains."""
    flat = gains.reshape(len(gains), -1) if len(gains) else gains.new_empty(0, 1)
    return flat[:, 0] if bool((flat == flat[:, :1]).all()) else gains


def _fold(bank: list[Tensor], begin: Tensor, values: Tensor, positions: Sequence[int], twice: bool) -> Tensor:
    """Settings of the same values, with gains [T] each, or one setting with gains for each channel.

    Returns:
        [settings, positions, 2, C]; with `twice` [settings, positions, 2, 2, C].
    """
    states = [begin.clone() for _ in range(1 + twice)]
    result = begin.new_empty(len(bank), len(positions), len(states), *begin.shape[1:])
    wanted: dict[int, list[int]] = {}
    for row, position in enumerate(positions):
        wanted.setdefault(position, []).append(row)
    # In a product 0·NaN is NaN: what a gain of 1 forgets is forgotten step by step there.
    finite = values.flatten(1).isfinite().all(1).tolist()
    last = max(wanted, default=0)
    for row in wanted.get(0, ()):
        result[:, row] = torch.stack(states, dim=1)
    for first in range(0, last, BLOCK):
        gains = torch.stack([one[first : first + BLOCK] for one in bank])
        ends = sorted({p for p in wanted if first < p < first + BLOCK} | {min(first + BLOCK, last)})
        for begun, end in pairwise([first, *ends]):
            part = gains[:, begun - first : end - first]
            clean = all(finite[begun:end]) and all(bool(state.isfinite().all()) for state in states)
            if part.dim() == 2 and clean and end - begun > 1:
                _product(states, part, values[begun:end])
            else:
                for j in range(end - begun):
                    _step(states, part[:, j], values[begun + j])
            for row in wanted.get(end, ()):
                result[:, row] = torch.stack(states, dim=1)
    return result if twice else result[:, :, 0]


def _product(states: list[Tensor], gains: Tensor, values: Tensor) -> None:
    """Gains [S, L] of L steps at once, in place: state ← what is kept of it + weights @ values."""
    # kept[:, j]: what remains at the end of something taken up before step j+1.
    kept = (1 - gains).flip(1).cumprod(1).flip(1)
    weights = gains * torch.cat((kept[:, 1:], torch.ones_like(kept[:, :1])), dim=1)
    values, rest = values.flatten(1), kept[:, :1]
    once = states[0].flatten(1)
    if len(states) == 2:
        # Taken up at step j and, once averaged, again at any step i ≥ j: the factors 1−gain after j are the same for
        # every i, so that the weight is multiplied by the sum of the gains from j on.
        ahead = gains.flip(1).cumsum(1).flip(1)
        states[1].flatten(1).mul_(rest).addcmul_(once, rest * ahead[:, :1]).addmm_(weights * ahead, values)
    once.mul_(rest).addmm_(weights, values)


def _step(states: list[Tensor], gain: Tensor, value: Tensor) -> None:
    """One step in place, with gains [S] or [1, C] or [1, 2, C]."""
    gain = gain[:, None, None] if gain.dim() == 1 else gain[:, None] if gain.dim() == 2 else gain
    for state in states:
        value = torch.where(gain == 1, value, torch.lerp(state, value.expand_as(state), gain))
        state.copy_(value)
