"""A stream of batch moments, what an estimator makes of it, and the fold that runs many estimators at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
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
    check_number(
        momentum,
        lambda m: 0 < m <= 1,
        f"momentum={momentum!r}: it is the weight of the new batch and lies in (0, 1]; for a decay use EMA.from_decay",
    )


def fold(estimators: Sequence[Estimator], stream: Stream, positions: Sequence[int]) -> Tensor:
    """Every estimator after each number of batches in `positions` (0 is the start, as it is).

    Returns:
        float64 [estimators, positions, 2, C].
    """
    result = stream.start.new_empty(len(estimators), len(positions), *stream.start.shape)
    shape, written = result.shape[1:], _count_writes(stream)
    bits = _sum_bits(stream) if any(map(_is_own, estimators)) else {}
    # Estimators whose gains all channels share go through one matrix product, with others of the same values.
    banks: dict[tuple[int, ...], tuple[Tensor, list[int], list[Tensor]]] = {}
    for i, estimator in enumerate(estimators):
        states = estimator.direct(stream, positions)
        if states is not None:
            states = _check_returned(estimator, "direct", states, shape)
            result[i] = _check_returned(estimator, "read", estimator.read(states, stream), shape)
            _check_writes(estimator, stream, written, bits)
            continue
        values = _check_returned(estimator, "values", estimator.values(stream), stream.batches.shape)
        gains = _collapse_shared(_check_gains(estimator, estimator.gains(stream), stream))
        _check_writes(estimator, stream, written, bits)
        key = (id(values), estimator.twice) if gains.dim() == 1 else (i,)
        _, members, bank = banks.setdefault(key, (values, [], []))
        members.append(i)
        bank.append(gains)
    for values, members, bank in banks.values():
        begin = torch.stack(
            [_check_returned(estimators[i], "begin", estimators[i].begin(stream), shape[1:]) for i in members]
        )
        folded = _fold(bank, begin, values, positions, estimators[members[0]].twice)
        for i, states in zip(members, folded, strict=True):
            result[i] = _check_returned(estimators[i], "read", estimators[i].read(states, stream), shape)
            _check_writes(estimators[i], stream, written, bits)
    result[:, [p == 0 for p in positions]] = stream.start
    return result


def _check_gains(estimator: Estimator, gains: Tensor, stream: Stream) -> Tensor:
    """ValueError unless the gains are what `Estimator.gains` promises."""
    steps, channels = stream.counts.shape
    shapes = [(steps,), (steps, channels), (steps, 2, channels)]
    if not isinstance(gains, Tensor) or gains.dtype != torch.float64 or gains.shape not in shapes:
        found = f"{gains.dtype} {tuple(gains.shape)}" if isinstance(gains, Tensor) else f"a {type(gains).__name__}"
        raise ValueError(
            f"{estimator.label}: gains returned {found}; return a float64 tensor of one gain for each step: [{steps}], "
            f"[{steps}, {channels}] or [{steps}, 2, {channels}]"
        )
    if steps and not (gains.amin() >= 0 and gains.amax() <= 1):  # also where one is NaN
        raise ValueError(f"{estimator.label}: gains from {gains.amin():g} to {gains.amax():g}; they lie in [0, 1]")
    return gains


def _check_returned(estimator: Estimator, method: str, found: Tensor, shape: Sequence[int]) -> Tensor:
    """What a method has returned; ValueError unless it has this shape: another may fit, and mean other numbers."""
    if isinstance(found, Tensor) and found.dtype == torch.float64 and found.shape == tuple(shape):
        return found
    described = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise ValueError(f"{estimator.label}: {method} returned {described}; return a float64 tensor {[*shape]}")


def _count_writes(stream: Stream) -> dict[str, int]:
    """How often each of the stream's tensors has been written in place; inference tensors do not count it."""
    tensors = {name: value for name, value in vars(stream).items() if isinstance(value, Tensor)}
    return {name: tensor._version for name, tensor in tensors.items() if not tensor.is_inference()}


def _sum_bits(stream: Stream) -> dict[str, int]:
    """What a write through numpy changes, which torch does not count."""
    tensors = {name: value for name, value in vars(stream).items() if isinstance(value, Tensor)}
    return {name: int(x.flatten().view(torch.int64).sum()) for name, x in tensors.items() if x.dtype == torch.float64}


def _is_own(estimator: Estimator) -> bool:
    """Whether it is the user's."""
    return type(estimator).__module__.partition(".")[0] != "bnlab"


def _check_writes(estimator: Estimator, stream: Stream, before: dict[str, int], bits: dict[str, int]) -> None:
    """ValueError if a tensor of the stream has been written since, or since it was made."""
    is_written = any(count != before.get(name, 0) for name, count in _count_writes(stream).items())
    if is_written or (_is_own(estimator) and not bits.items() <= _sum_bits(stream).items()):
        raise ValueError(
            f"{estimator.label}: it writes into the stream, which other estimators average too; work on a copy, "
            ".clone()"
        )


def _collapse_shared(gains: Tensor) -> Tensor:
    """[T] where all channels have the same gains."""
    if gains.dim() == 1:
        return gains
    flat = gains.reshape(len(gains), -1) if len(gains) else gains.new_empty(0, 1)
    return flat[:, 0] if bool((flat == flat[:, :1]).all()) else gains


def _fold(bank: list[Tensor], begin: Tensor, values: Tensor, positions: Sequence[int], twice: bool) -> Tensor:
    """Settings of the same values, with gains [T] each, or one setting with gains for each channel.

    Returns:
        [settings, positions, 2, C]; with `twice` [settings, positions, 2, 2, C].
    """
    states = [begin] * (1 + twice)
    result = begin.new_empty(len(bank), len(positions), len(states), *begin.shape[1:])
    # In a product 0·NaN is NaN: what a gain of 1 forgets is forgotten step by step there.
    finite = values.flatten(1).isfinite().all(1)
    rows: dict[int, list[int]] = {}
    for row, position in enumerate(positions):
        rows.setdefault(position, []).append(row)
    cuts = sorted({0, *rows})
    for first, last in zip([0, *cuts], cuts, strict=False):
        if bank[0].dim() == 1 and finite[first:last].all() and all(bool(s.isfinite().all()) for s in states):
            states = _product(states, bank, values, first, last)
        else:
            for t in range(first, last):
                states = _step(states, torch.stack([gains[t] for gains in bank]), values[t])
        for row, position in enumerate(positions):
            if position == last:
                result[:, row] = torch.stack(states, dim=1)
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
        # Taken up at step j and, once averaged, again at any step from j on: the factors 1−gain after j are the same
        # for each of them, so that the second weight is the first, multiplied by the sum of the gains from j on.
        for total, weight in zip(sums, (weights, weights * later), strict=False):
            if len(rows) == len(bank):
                total.addmm_(weight, flat[begin:end])
            else:
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
