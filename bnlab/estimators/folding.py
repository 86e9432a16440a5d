"""The fold of estimators over a stream: state ← state + gain·(value − state), all estimators of one kind at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from bnlab.estimators.base import Estimator, Stream

BATCHES_PER_PRODUCT = 256  # that are folded in one matrix product: enough to be bound by arithmetic, not by memory
_FORGOTTEN = 1e-40  # share of an old state that counts as none, so that earlier batches are left out


@dataclass
class _Group:
    """Estimators that are folded together: of the same values, with gains of one shape.

    Attributes:
        values: [T, 2, C], what they average.
        places: where its members stand among all estimators.
        gains: the gains of each member.
    """

    values: Tensor
    places: list[int] = field(default_factory=list)
    gains: list[Tensor] = field(default_factory=list)


def fold(estimators: Sequence[Estimator], stream: Stream, positions: Sequence[int]) -> Tensor:
    """Compute mean and variance of every estimator after each of several numbers of batches.

    Args:
        estimators: any.
        stream: the batches, T of them.
        positions: numbers of batches, each from 0 to T, in any order. At 0 every estimator gives `stream.start`.

    Returns:
        float64 [estimators, positions, 2, C].

    Raises:
        ValueError: an estimator's gains are not as `Estimator.gains` says, what its `direct` or `read` returns has
            another shape, or a position is not from 0 to T.

    >>> from bnlab.estimators import EMA, Cumulative
    >>> from bnlab.estimators.example import EXAMPLE  # two batches, of mean 1 and 3; the start is 0
    >>> fold([EMA(momentum=0.5), Cumulative()], EXAMPLE, [0, 1, 2])[:, :, 0, 0].tolist()
    [[0.0, 0.5, 1.75], [0.0, 1.0, 2.0]]
    """
    count = len(stream.counts)
    outside = [position for position in positions if not 0 <= position <= count]
    if outside:
        raise ValueError(f"fold: position {outside[0]}; the stream has {count} batches, so give 0 to {count}")
    start = stream.start
    result = start.new_empty(len(estimators), len(positions), *start.shape)
    recursive = []
    for place, estimator in enumerate(estimators):
        states = estimator.direct(stream, positions)
        if states is None:
            recursive.append(place)
        else:
            _require_shape(estimator, "direct", states, len(positions), start)
            result[place] = _read(estimator, states, stream, start)

    for group in _group_estimators(estimators, recursive, stream):
        members = [estimators[place] for place in group.places]
        first_states = torch.stack([member.begin(stream) for member in members])
        folded = _fold_group(group, first_states, positions)
        for place, member, states in zip(group.places, members, folded, strict=True):
            result[place] = _read(member, states, stream, start)

    # The start is copied, because converting it to mean squares and back would round it.
    is_start = [position == 0 for position in positions]
    result[:, is_start] = start
    return result


def _read(estimator: Estimator, states: Tensor, stream: Stream, start: Tensor) -> Tensor:
    """Let an estimator read mean and variance from its states, [positions, 2, C]."""
    read = estimator.read(states, stream)
    _require_shape(estimator, "read", read, len(states), start)
    return read


def _require_shape(estimator: Estimator, method: str, states: Tensor, positions: int, start: Tensor) -> None:
    """Raise ValueError unless there is a state for each position; fewer would be repeated without a word."""
    wanted = [positions, *start.shape]
    if not isinstance(states, Tensor) or [*states.shape] != wanted:
        found = [*states.shape] if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(f"{estimator.label}: {method} returned {found}; return a tensor {wanted}")


def _group_estimators(estimators: Sequence[Estimator], places: Sequence[int], stream: Stream) -> list[_Group]:
    """Group the estimators at some places by what one matrix product can fold."""
    groups: dict[tuple[int, int], _Group] = {}
    for place in places:
        estimator = estimators[place]
        values = estimator.values(stream)
        gains = estimator.gains(stream)
        _require_gains(estimator, gains, stream)
        gains = _collapse_shared(gains)

        # A group keeps its values, so that no later tensor gets their id.
        key = (id(values), gains.dim())
        group = groups.setdefault(key, _Group(values))
        group.places.append(place)
        group.gains.append(gains)
    return list(groups.values())


def _require_gains(estimator: Estimator, gains: Tensor, stream: Stream) -> None:
    """Raise ValueError unless the gains are as `Estimator.gains` says."""
    label = estimator.label
    steps, channels = stream.counts.shape
    allowed = [(steps,), (steps, channels), (steps, 2, channels)]
    wanted = f"return a float64 tensor [{steps}], [{steps}, {channels}] or [{steps}, 2, {channels}]"
    if not isinstance(gains, Tensor):
        kind = type(gains).__name__
        raise ValueError(f"{label}: gains returned a {kind}; {wanted}")

    shape = tuple(gains.shape)
    if gains.dtype != torch.float64 or shape not in allowed:
        raise ValueError(f"{label}: gains returned {gains.dtype} {shape}; {wanted}")
    # An empty tensor has no least and no most.
    if steps == 0:
        return

    least = gains.amin()
    most = gains.amax()
    if not (least >= 0 and most <= 1):  # also if one is NaN
        raise ValueError(f"{label}: gains from {least:g} to {most:g}; they lie in [0, 1]")


def _collapse_shared(gains: Tensor) -> Tensor:
    """Reduce gains to [T] if all channels have the same."""
    if gains.dim() == 1:
        return gains
    # If all channels share their gains, a matrix product can fold them, even if an estimator repeats them for each
    # channel.
    flat = gains.flatten(1)
    first = flat[:, :1]
    if (flat == first).all():
        return flat[:, 0]
    return gains


def _fold_group(group: _Group, states: Tensor, positions: Sequence[int]) -> Tensor:
    """Fold the members of a group from their states [members, 2, C] before the first batch.

    Returns:
        [members, positions, 2, C].
    """
    # The fold begins at position 0, whether or not it is asked for.
    rows: dict[int, list[int]] = {0: []}
    for row, position in enumerate(positions):
        rows.setdefault(position, []).append(row)

    result = states.new_empty(len(states), len(positions), *states.shape[1:])
    is_shared = group.gains[0].dim() == 1
    is_finite = group.values.isfinite().flatten(1).all(1)
    # Position 0 is left unwritten here, because `fold` copies the start there.
    for before, after in pairwise(sorted(rows)):
        # In a matrix product 0·NaN is NaN. Step by step, a gain of 1 forgets a NaN.
        if is_shared and is_finite[before:after].all() and states.isfinite().all():
            states = _fold_at_once(states, group, before, after)
        else:
            states = _fold_stepwise(states, group, before, after)
        result[:, rows[after]] = states[:, None]
    return result


def _fold_at_once(states: Tensor, group: _Group, before: int, after: int) -> Tensor:
    """Fold the batches from position `before` to `after`: the share of the states that is kept, plus weights @ values.

    It goes backwards in time, block by block, as far as a member remembers: a large momentum needs few blocks.

    Args:
        states: [members, 2, C] at `before`.
        group: estimators with gains [T].
        before: the number of batches that `states` have seen.
        after: the number that they shall have seen.
    """
    flat = group.values.flatten(1)
    total = torch.zeros_like(states).flatten(1)
    # Product of 1 − gain: the share of a state at `end` that remains.
    remaining = flat.new_ones(len(group.gains), 1)
    end = after
    while end > before:
        remembers = (remaining > _FORGOTTEN).squeeze(1)
        rows = remembers.nonzero().squeeze(1)
        if len(rows) == 0:
            break
        start = max(end - BATCHES_PER_PRODUCT, before)
        gains = torch.stack([group.gains[row][start:end] for row in rows.tolist()])

        # A value is weighted by its gain times the share that remains of a state after it.
        kept = _multiply_from_end(1 - gains) * remaining[rows]  # [:, j]: of a state before batch start+j
        kept_after = torch.cat((kept[:, 1:], remaining[rows]), dim=1)

        weights = gains * kept_after
        # Indexing by a tensor makes a copy, so that the sum has to be assigned back.
        total[rows] = total[rows].addmm_(weights, flat[start:end])

        remaining[rows] = kept[:, :1]
        end = start

    total.addcmul_(states.flatten(1), remaining)
    return total.view_as(states)


def _multiply_from_end(factors: Tensor) -> Tensor:
    """Multiply each column of [rows, columns] with all that follow it."""
    return factors.flip(1).cumprod(1).flip(1)


def _fold_stepwise(states: Tensor, group: _Group, before: int, after: int) -> Tensor:
    """Fold the batches from position `before` to `after` one by one; arguments as of `_fold_at_once`, any gains."""
    for t in range(before, after):
        gain = torch.stack([gains[t] for gains in group.gains])  # [members], [members, C] or [members, 2, C]
        if gain.dim() == 1:
            gain = gain[:, None, None]
        elif gain.dim() == 2:
            gain = gain[:, None]

        value = group.values[t]
        moved = torch.lerp(states, value.expand_as(states), gain)
        # A batch of gain 0 does not count, whatever it holds.
        moved = torch.where(gain == 0, states, moved)
        # `lerp` reads the old state even if the gain is 1, so that a NaN would stay.
        states = torch.where(gain == 1, value, moved)
    return states
