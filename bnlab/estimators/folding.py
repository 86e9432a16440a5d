"""The fold of estimators over a stream: state ← state + gain·(value − state), all estimators of one kind at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from bnlab.estimators.base import Estimator, Stream

BLOCK = 256  # batches that are folded in one matrix product: enough to be bound by arithmetic, not by memory
_FORGOTTEN = 1e-40  # share of an old state that counts as none, so that earlier batches are left out


@dataclass
class _Group:
    """Estimators that are folded together: of the same values, with gains [T] each; or one whose channels differ.

    Attributes:
        values: [T, 2, C], what they average.
        twice: whether they average twice.
        places: where its members stand among all estimators.
        gains: the gains of each member.
    """

    values: Tensor
    twice: bool
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
        ValueError: an estimator's gains are not as `Estimator.gains` says.

    >>> from bnlab.estimators import EMA, Cumulative
    >>> from bnlab.estimators.example import EXAMPLE  # two batches, of mean 1 and 3; the start is 0
    >>> fold([EMA(momentum=0.5), Cumulative()], EXAMPLE, [0, 1, 2])[:, :, 0, 0].tolist()
    [[0.0, 0.5, 1.75], [0.0, 1.0, 2.0]]
    """
    start = stream.start
    result = start.new_empty(len(estimators), len(positions), *start.shape)
    recursive = []
    for place, estimator in enumerate(estimators):
        states = estimator.direct(stream, positions)
        if states is None:
            recursive.append(place)
        else:
            result[place] = estimator.read(states, stream)

    for group in _group_estimators(estimators, recursive, stream):
        members = [estimators[place] for place in group.places]
        first_states = torch.stack([member.begin(stream) for member in members])
        folded = _fold_group(group, first_states, positions)
        for place, member, states in zip(group.places, members, folded, strict=True):
            result[place] = member.read(states, stream)

    is_start = [position == 0 for position in positions]
    result[:, is_start] = start
    return result


def _group_estimators(estimators: Sequence[Estimator], places: Sequence[int], stream: Stream) -> list[_Group]:
    """Group the estimators at some places by what one matrix product can fold."""
    groups: dict[tuple[int, ...], _Group] = {}
    for place in places:
        estimator = estimators[place]
        values = estimator.values(stream)
        gains = estimator.gains(stream)
        _require_gains(estimator, gains, stream)
        gains = _collapse_shared(gains)

        # A group keeps its values, so that no later tensor gets their id.
        key: tuple[int, ...] = (place,)
        if gains.dim() == 1:
            key = (id(values), estimator.twice)
        group = groups.setdefault(key, _Group(values, estimator.twice))
        group.places.append(place)
        group.gains.append(gains)
    return list(groups.values())


def _require_gains(estimator: Estimator, gains: Tensor, stream: Stream) -> None:
    """Raise ValueError unless the gains are as `Estimator.gains` says."""
    fault = _find_fault(gains, *stream.counts.shape)
    if fault:
        raise ValueError(f"{estimator.label}: {fault}")


def _find_fault(gains: Tensor, steps: int, channels: int) -> str:
    """Describe the fault of the gains; empty if there is none."""
    wanted = f"return a float64 tensor [{steps}], [{steps}, {channels}] or [{steps}, 2, {channels}]"
    if not isinstance(gains, Tensor):
        kind = type(gains).__name__
        return f"gains returned a {kind}; {wanted}"

    allowed = [(steps,), (steps, channels), (steps, 2, channels)]
    shape = tuple(gains.shape)
    if gains.dtype != torch.float64 or shape not in allowed:
        return f"gains returned {gains.dtype} {shape}; {wanted}"
    if steps == 0:
        return ""

    least = gains.amin()
    most = gains.amax()
    if least >= 0 and most <= 1:  # not if one is NaN
        return ""
    return f"gains from {least:g} to {most:g}; they lie in [0, 1]"


def _collapse_shared(gains: Tensor) -> Tensor:
    """Reduce gains to [T] if all channels have the same."""
    if gains.dim() == 1:
        return gains
    flat = gains.flatten(1)
    first = flat[:, :1]
    if (flat == first).all():
        return flat[:, 0]
    return gains


def _fold_group(group: _Group, first_states: Tensor, positions: Sequence[int]) -> Tensor:
    """Fold the members of a group from their states [members, 2, C] before the first batch.

    Returns:
        [members, positions, 2, C]; of a group that averages twice [members, positions, 2, 2, C].
    """
    averages = 2 if group.twice else 1
    states = [first_states] * averages
    members, *shape = first_states.shape
    result = first_states.new_empty(members, len(positions), averages, *shape)

    is_shared = group.gains[0].dim() == 1
    is_finite = group.values.isfinite().flatten(1).all(1)
    places = _find_places(positions)
    result[:, places[0]] = _stack_averages(states)
    for before, after in pairwise(sorted(places)):
        # In a matrix product 0·NaN is NaN. Step by step, a gain of 1 forgets a NaN.
        if is_shared and is_finite[before:after].all() and _are_finite(states):
            states = _fold_at_once(states, group, before, after)
        else:
            states = _fold_stepwise(states, group, before, after)
        result[:, places[after]] = _stack_averages(states)

    if group.twice:
        return result
    return result[:, :, 0]


def _stack_averages(states: list[Tensor]) -> Tensor:
    """Stack the states of the first average and the second: [members, 1, averages, 2, C], for any number of places."""
    return torch.stack(states, dim=1).unsqueeze(1)


def _find_places(positions: Sequence[int]) -> dict[int, list[int]]:
    """Find the places at which each position stands in the result; 0 is listed even if it has none."""
    places: dict[int, list[int]] = {0: []}
    for place, position in enumerate(positions):
        places.setdefault(position, []).append(place)
    return places


def _are_finite(states: list[Tensor]) -> bool:
    return all(bool(state.isfinite().all()) for state in states)


def _fold_at_once(states: list[Tensor], group: _Group, before: int, after: int) -> list[Tensor]:
    """Fold the batches from position `before` to `after`: the share of the states that is kept, plus weights @ values.

    It goes backwards in time, block by block, as far as a member remembers: a large momentum needs few blocks.

    Args:
        states: [members, 2, C] at `before`; of a group that averages twice those of the first and the second average.
        group: estimators with gains [T].
        before: the number of batches that `states` have seen.
        after: the number that they shall have seen.
    """
    flat = group.values.flatten(1)
    sums = [torch.zeros_like(state).flatten(1) for state in states]

    # Both for each member, over the batches from position `end` to `after`, which are done.
    rest = flat.new_ones(len(group.gains), 1)  # product of 1 − gain: the share of a state at `end` that remains
    ahead = torch.zeros_like(rest)  # sum of the gains
    end = after
    while end > before:
        remembers = (rest > _FORGOTTEN).squeeze(1)
        rows = remembers.nonzero().squeeze(1)
        if len(rows) == 0:
            break
        start = max(end - BLOCK, before)
        block = flat[start:end]
        gains = torch.stack([group.gains[row][start:end] for row in rows.tolist()])

        # A value is weighted by its gain times the share that remains of a state after it.
        kept = _multiply_from_end(1 - gains) * rest[rows]  # [:, j]: of a state before batch start+j
        kept_after = torch.cat((kept[:, 1:], rest[rows]), dim=1)
        weights = gains * kept_after
        sums[0][rows] = sums[0][rows].addmm_(weights, block)

        # The second average takes it up with the first, at its batch or any later one. Each way has the same factors
        # 1 − gain, so the weights are those of the first times the sum of the gains from that batch on.
        later = _sum_from_end(gains) + ahead[rows]
        if group.twice:
            sums[1][rows] = sums[1][rows].addmm_(weights * later, block)

        rest[rows] = kept[:, :1]
        ahead[rows] = later[:, :1]
        end = start

    first = states[0].flatten(1)
    sums[0].addcmul_(first, rest)
    if group.twice:
        second = states[1].flatten(1)
        sums[1].addcmul_(second, rest)
        sums[1].addcmul_(first, rest * ahead)
    return [total.view_as(state) for total, state in zip(sums, states, strict=True)]


def _multiply_from_end(factors: Tensor) -> Tensor:
    """Multiply each column of [rows, columns] with all that follow it."""
    return factors.flip(1).cumprod(1).flip(1)


def _sum_from_end(terms: Tensor) -> Tensor:
    """Sum each column of [rows, columns] and all that follow it."""
    return terms.flip(1).cumsum(1).flip(1)


def _fold_stepwise(states: list[Tensor], group: _Group, before: int, after: int) -> list[Tensor]:
    """Fold the batches from position `before` to `after` one by one; arguments as of `_fold_at_once`, any gains."""
    for t in range(before, after):
        gain = torch.stack([gains[t] for gains in group.gains])
        states = _take_step(states, gain, group.values[t])
    return states


def _take_step(states: list[Tensor], gain: Tensor, value: Tensor) -> list[Tensor]:
    """Take one step of the recursion.

    Args:
        states: [members, 2, C], of the first average and, if there is one, the second.
        gain: [members], or [1, C] or [1, 2, C] of one member whose channels differ.
        value: [2, C], of the batch.
    """
    if gain.dim() == 1:
        gain = gain[:, None, None]
    elif gain.dim() == 2:
        gain = gain[:, None]

    new_states = []
    target = value
    for state in states:
        moved = torch.lerp(state, target.expand_as(state), gain)
        new_state = torch.where(gain == 1, target, moved)
        new_states.append(new_state)
        target = new_state  # the second average is of the first
    return new_states
