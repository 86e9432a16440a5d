"""A stream of batch moments, the estimators that average it, and the fold that runs many of them at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.arguments import require_number
from bnlab.names import Named

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
        mean, unbiased = self.batches.unbind(1)
        var = unbiased * (self.counts - 1) / self.counts
        return torch.stack((mean, var), dim=1)

    @cached_property
    def deviations(self) -> Tensor:
        """[T, 2, C], each batch's mean and root of variance (ddof 0) + eps."""
        mean, var = self.biased.unbind(1)
        deviation = (var + self.eps).sqrt()
        return torch.stack((mean, deviation), dim=1)

    @cached_property
    def shift(self) -> Tensor:
        """[C], the first batch's mean: squares are taken about it, so that nothing cancels where mean ≫ deviation."""
        mean = self.batches[0, 0] if len(self) else self.start[0]
        return mean.nan_to_num(0.0, 0.0, 0.0)

    @cached_property
    def squares(self) -> Tensor:
        """[T, 2, C], each batch's mean and mean square about `shift`."""
        return self.about_shift(self.biased)

    def about_shift(self, pairs: Tensor) -> Tensor:
        """Turn mean and variance [..., 2, C] into mean and mean square about `shift`."""
        mean, var = pairs.unbind(-2)
        square = var + (mean - self.shift).square()
        return torch.stack((mean, square), dim=-2)

    def from_squares(self, pairs: Tensor) -> Tensor:
        """Invert `about_shift`."""
        mean, square = pairs.unbind(-2)
        var = square - (mean - self.shift).square()
        return torch.stack((mean, var.clamp(min=0)), dim=-2)


@dataclass(frozen=True)
class Estimator(Named, ABC):
    """`state ← state + gain·(value − state)` over the batches, from `begin`, then `read`.

    Subclasses are frozen dataclasses whose fields are their parameters; `name` and `gains` are all that one needs. With
    a field `momentum` a sweep has it with each of its momenta. `look` says how figures show it.
    """

    # The averages are averaged once more, with the same gains; `read` gets [..., 2, 2, C], once and twice.
    twice: ClassVar[bool] = False

    @abstractmethod
    def gains(self, stream: Stream) -> Tensor:
        """Compute each batch's weight, in [0, 1]: float64 [T], or [T, C] or [T, 2, C] where channels differ."""

    def values(self, stream: Stream) -> Tensor:
        """Return the values that are averaged, [T, 2, C].

        Estimators that return the same tensor (the stream's) are folded together.
        """
        return stream.batches

    def begin(self, stream: Stream) -> Tensor:
        """Return the start in terms of the values, [2, C]."""
        return stream.start

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        """Turn averaged values [..., 2, C] into mean and variance [..., 2, C]."""
        return states

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor | None:
        """Compute the states [positions, 2, C] without that recursion; None: fold the gains."""
        return None

    @property
    def label(self) -> str:
        """Canonical name that tells every parameter but the momentum, e.g. `window(k=20,pooled=False)`."""
        name = self.full_name.leave_out("momentum")
        return str(name)


def check_momentum(momentum: float) -> None:
    """Raise TypeError unless it is a number, ValueError unless 0 < momentum ≤ 1."""
    message = f"momentum={momentum!r}: it is the weight of the new batch and lies in (0, 1]"
    require_number(momentum, lambda m: 0 < m <= 1, f"{message}; for a decay use EMA.from_decay")


@dataclass
class _Group:
    """Estimators whose gains all channels share, and which average the same values; or one estimator alone."""

    values: Tensor  # [T, 2, C]
    twice: bool
    rows: list[int] = field(default_factory=list)  # of the estimators among all
    gains: list[Tensor] = field(default_factory=list)  # of each of them


def fold(estimators: Sequence[Estimator], stream: Stream, positions: Sequence[int]) -> Tensor:
    """Compute every estimator after each number of batches in `positions` (0 is the start, as it is).

    Returns:
        float64 [estimators, positions, 2, C].
    """
    result = stream.start.new_empty(len(estimators), len(positions), *stream.start.shape)
    groups: dict[tuple[int, ...], _Group] = {}
    for row, estimator in enumerate(estimators):
        states = estimator.direct(stream, positions)
        if states is not None:
            result[row] = estimator.read(states, stream)
            continue

        values = estimator.values(stream)
        gains = estimator.gains(stream)
        _require_gains(estimator, gains, stream)
        gains = _collapse_shared(gains)

        # A group goes through one matrix product. It keeps its values, so that no other tensor gets their id.
        is_shared = gains.dim() == 1
        key = (id(values), estimator.twice) if is_shared else (row,)
        group = groups.setdefault(key, _Group(values, estimator.twice))
        group.rows.append(row)
        group.gains.append(gains)

    for group in groups.values():
        begin = torch.stack([estimators[row].begin(stream) for row in group.rows])
        folded = _fold(group.gains, begin, group.values, positions, group.twice)
        for row, states in zip(group.rows, folded, strict=True):
            result[row] = estimators[row].read(states, stream)

    is_start = [position == 0 for position in positions]
    result[:, is_start] = stream.start
    return result


def _require_gains(estimator: Estimator, gains: Tensor, stream: Stream) -> None:
    """Raise ValueError unless the gains are as `Estimator.gains` promises."""
    fault = _find_fault(gains, *stream.counts.shape)
    if fault:
        raise ValueError(f"{estimator.label}: {fault}")


def _find_fault(gains: Tensor, steps: int, channels: int) -> str:
    """Describe the fault of the gains; empty if there is none."""
    allowed = [(steps,), (steps, channels), (steps, 2, channels)]
    wanted = f"return a float64 tensor [{steps}], [{steps}, {channels}] or [{steps}, 2, {channels}]"
    if not isinstance(gains, Tensor):
        return f"gains returned a {type(gains).__name__}; {wanted}"
    if gains.dtype != torch.float64 or gains.shape not in allowed:
        return f"gains returned {gains.dtype} {tuple(gains.shape)}; {wanted}"
    if not steps:
        return ""

    least = gains.amin()
    most = gains.amax()
    is_weight = least >= 0 and most <= 1  # not if one is NaN
    return "" if is_weight else f"gains from {least:g} to {most:g}; they lie in [0, 1]"


def _collapse_shared(gains: Tensor) -> Tensor:
    """Reduce gains to [T] where all channels have the same."""
    if gains.dim() == 1:
        return gains
    flat = gains.flatten(1)
    first = flat[:, :1]
    if (flat == first).all():
        return flat[:, 0]
    return gains


def _fold(bank: list[Tensor], begin: Tensor, values: Tensor, positions: Sequence[int], twice: bool) -> Tensor:
    """Fold settings of the same values with gains [T] each, or one setting with gains for each channel.

    Returns:
        [settings, positions, 2, C]; with `twice` [settings, positions, 2, 2, C].
    """
    states = [begin, begin] if twice else [begin]
    result = begin.new_empty(len(bank), len(positions), len(states), *begin.shape[1:])
    rows = _group_rows(positions)
    is_shared = bank[0].dim() == 1
    is_finite = values.flatten(1).isfinite().all(1)

    result[:, rows[0]] = torch.stack(states, dim=1)[:, None]
    for first, last in pairwise(sorted(rows)):
        # In a product 0·NaN is NaN. Step by step, a gain of 1 forgets a NaN.
        if is_shared and is_finite[first:last].all() and _are_finite(states):
            states = _take_block(states, bank, values, first, last)
        else:
            states = _take_steps(states, bank, values, first, last)
        result[:, rows[last]] = torch.stack(states, dim=1)[:, None]
    return result if twice else result[:, :, 0]


def _group_rows(positions: Sequence[int]) -> dict[int, list[int]]:
    """Group rows of the result by their position; the start is always one of these."""
    rows: dict[int, list[int]] = {0: []}
    for row, position in enumerate(positions):
        rows.setdefault(position, []).append(row)
    return rows


def _are_finite(states: list[Tensor]) -> bool:
    return all(bool(state.isfinite().all()) for state in states)


def _take_block(states: list[Tensor], bank: list[Tensor], values: Tensor, first: int, last: int) -> list[Tensor]:
    """Take steps first to last at once: the part of the state that is kept, plus weights @ values.

    Block by block backwards in time, as far as a setting remembers: a large momentum is done after a few blocks.
    """
    flat = values.flatten(1)
    sums = [torch.zeros_like(state).flatten(1) for state in states]
    rest = flat.new_ones(len(bank), 1)  # share that remains at `last` of a value taken up before `end`
    ahead = torch.zeros_like(rest)  # sum of the gains after `end`
    end = last
    while end > first:
        rows = (rest > _FORGOTTEN).squeeze(1).nonzero().squeeze(1)
        if not len(rows):
            break
        begin = max(end - BLOCK, first)
        block = flat[begin:end]
        gains = torch.stack([bank[row][begin:end] for row in rows.tolist()])

        # kept[:, j]: share that remains at `last` of a value taken up before step begin+j.
        kept = (1 - gains).flip(1).cumprod(1).flip(1) * rest[rows]
        kept_after = torch.cat((kept[:, 1:], rest[rows]), dim=1)
        weights = gains * kept_after
        sums[0][rows] = sums[0][rows].addmm_(weights, block)

        # Taken up at step j and, once averaged, again at any step from j on, with the same factors 1−gain after j: the
        # second weight is the first, multiplied by the sum of the gains from j on.
        later = gains.flip(1).cumsum(1).flip(1) + ahead[rows]
        if len(states) == 2:
            sums[1][rows] = sums[1][rows].addmm_(weights * later, block)

        rest[rows] = kept[:, :1]
        ahead[rows] = later[:, :1]
        end = begin

    once = states[0].flatten(1)
    sums[0].addcmul_(once, rest)
    if len(states) == 2:
        twice = states[1].flatten(1)
        sums[1].addcmul_(twice, rest)
        sums[1].addcmul_(once, rest * ahead)
    return [total.view_as(state) for total, state in zip(sums, states, strict=True)]


def _take_steps(states: list[Tensor], bank: list[Tensor], values: Tensor, first: int, last: int) -> list[Tensor]:
    """Take steps first to last one after the other."""
    for t in range(first, last):
        gain = torch.stack([gains[t] for gains in bank])
        states = _take_step(states, gain, values[t])
    return states


def _take_step(states: list[Tensor], gain: Tensor, value: Tensor) -> list[Tensor]:
    """Take one step, with gains [settings] or [1, C] or [1, 2, C]."""
    if gain.dim() == 1:
        gain = gain[:, None, None]
    elif gain.dim() == 2:
        gain = gain[:, None]

    later = []
    for state in states:  # the second one averages the first
        moved = torch.lerp(state, value.expand_as(state), gain)
        value = torch.where(gain == 1, value, moved)
        later.append(value)
    return later
