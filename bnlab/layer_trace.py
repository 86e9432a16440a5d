"""The recorded calls of one layer: its batch moments, and what its running buffers held when replays begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FORGOTTEN = 1e-300  # a weight so small that nothing is left, also beside a channel that has been dead for long
_BLOCK = 1024  # calls: long traces of wide layers are large


class Start(NamedTuple):
    """What a layer's running buffers held at some moment of the recording.

    Attributes:
        entries: how many calls had been recorded.
        values: [2, C], the running mean and variance.
        updates: `num_batches_tracked`, 0 for a layer without.
        step: the step after which they held it; the layer's last call may be earlier.
    """

    entries: int
    values: Tensor
    updates: int
    step: int


class LayerTrace:
    """The recorded calls of one layer.

    Attributes:
        start: [2, C], its running mean and variance at `first_step`.
        updates: `num_batches_tracked` at `first_step`.
        eps: the layer's own.
        steps: for each call its step.
        counts: for each call its values per channel.
        restarts: what was written into the buffers from outside (`load_state_dict`, `reset_running_stats`), in order;
            replays begin again there.
        first_step: the step at which recording began.
        end: [2, C], the running mean and variance when the block ended; None where that is not known: inside of it, in
            copies and files that were made there, in files of earlier versions, and after `truncate`.
    """

    def __init__(
        self,
        start: Tensor,
        updates: int,
        eps: float,
        steps: Sequence[int] = (),
        counts: Sequence[int] = (),
        chunks: Sequence[Tensor] = (),
        restarts: Sequence[Start] = (),
        first_step: int = 0,
        end: Tensor | None = None,
    ) -> None:
        self.start, self.updates, self.eps, self.first_step, self.end = start, updates, eps, first_step, end
        self.steps, self.counts, self.restarts = list(steps), list(counts), list(restarts)
        self.chunks = list(chunks)  # the entries that are complete, on the CPU
        self.stored = len(self.steps)  # how many those are
        self.current: Tensor | None = None  # [_CHUNK, 2, C] on the layer's device, the entries after them
        self.begin, self.slots = 0, list[tuple[Tensor, ...]]()  # places in it for the next entries, from which one on
        self.truncated = False  # since the last call: the buffers may be those of any time

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def moments(self) -> Tensor:
        """[calls, 2, C]: batch mean and unbiased batch variance, as the layer computed them (usually float32).

        The variance has ddof 0 where that is what the forward of the layer's own class averages.
        """
        return self.moments_between(0, len(self))

    def moments_between(self, first: int, end: int) -> Tensor:
        """[end − first, 2, C]: `moments` of these calls."""
        parts, begin = [self.start.new_empty(0, *self.start.shape).cpu()], 0
        current = [] if self.current is None else [self.current[: len(self) - self.stored]]
        for chunk in (*self.chunks, *current):
            parts.append(chunk[max(first - begin, 0) : max(end - begin, 0)].cpu())
            begin += len(chunk)
        return torch.cat(parts)

    @property
    def starts(self) -> list[Start]:
        """The start, and the restarts after it."""
        return [Start(0, self.start, self.updates, self.first_step), *self.restarts]

    @property
    def last_start(self) -> Start:
        """What replays of the latest steps begin from."""
        return self.restarts[-1] if self.restarts else self.starts[0]

    @property
    def calls_since_start(self) -> int:
        """How many calls have been recorded since then."""
        return len(self) - self.last_start.entries

    @property
    def updates_now(self) -> int:
        """What `num_batches_tracked` is after the calls recorded so far."""
        return self.last_start.updates + self.calls_since_start

    def restart(self, values: Tensor, updates: int, step: int) -> None:
        """Let what comes after `step` begin from these running buffers."""
        if not len(self) and step == self.first_step:
            self.start, self.updates = values, updates
            return
        self.drop_restart(step)
        self.restarts.append(Start(len(self), values.cpu(), updates, step))

    def drop_restart(self, step: int) -> bool:
        """Forget what was written after `step` and the last call, if there is such: something else has been since."""
        last = self.last_start
        is_there = bool(self.restarts) and (last.entries, last.step) == (len(self), step)
        if is_there:
            self.restarts.pop()
        return is_there

    def move_to(self, step: int) -> None:
        """Let everything that was recorded belong to one step."""
        self.steps = [step] * len(self)
        self.restarts = [start._replace(step=step) for start in self.restarts]

    def average(self, momenta: Sequence[float]) -> tuple[Tensor, float]:
        """float64 [2, C]: a running average after the calls since the last start; and the memory of it.

        Args:
            momenta: of these calls, in order.

        Returns:
            The average, and by how many calls' roundings it may be off: each call leaves 1 − momentum of those before.
        """
        shares = 1 - torch.tensor(momenta, dtype=torch.float64, device="cpu")
        left = torch.cat((shares, shares.new_ones(1))).flip(0).cumprod(0).flip(0)  # of what was there before each call
        first = int((left[1:].abs() < _FORGOTTEN).cumprod(0).sum())  # of a long trace what something is left of
        weights = left[1:] - left[:-1]
        average = left[0] * self.last_start.values.cpu().double()
        for begin in range(first, len(weights), _BLOCK):
            some = weights[begin : begin + _BLOCK]
            entry = self.last_start.entries + begin
            average += torch.einsum("t,tkc->kc", some, self.moments_between(entry, entry + len(some)).double())
        return average, float(left[1:].abs().sum())

    def truncate(self, step: int) -> None:
        """Forget the calls and writes after `step`."""
        length, restarts = bisect_right(self.steps, step), [start for start in self.restarts if start.step <= step]
        if length < self.stored:
            self.chunks, self.stored = [self.moments_between(0, length)], length
        if length < len(self) or len(restarts) < len(self.restarts):
            self.truncated, self.end = True, None
        del self.steps[length:], self.counts[length:]
        self.restarts = restarts
        self.slots.clear()

    def extend(self, later: LayerTrace, step: int) -> None:
        """Append a later part of the same run, which begins at `step`."""
        if not self._goes_on_in(later):
            self.restart(later.start, later.updates, step)
        self.restarts += [start._replace(entries=start.entries + len(self)) for start in later.restarts]
        self.chunks.append(later.moments)
        self.steps += later.steps
        self.counts += later.counts
        self.stored, self.end = len(self), later.end

    def _goes_on_in(self, later: LayerTrace) -> bool:
        """Whether a later part begins with what this one has left."""
        if self.end is not None and not _are_equal(self.end, later.start):
            return False
        mean, var = later.start
        is_new = not (mean.any() or (var - 1).any())
        # No updates: the buffers were reset, or the layer has no `num_batches_tracked` and goes on.
        counts_differ = later.updates != self.updates_now and (later.updates or is_new)
        # A layer also counts batches that leave no entry, empty ones for instance.
        is_known = self.end is not None and self.calls_since_start and later.updates > self.updates_now
        return bool(is_known or not counts_differ)


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isclose(a.cpu().double(), b.cpu().double(), rtol=0, atol=0, equal_nan=True).all())
