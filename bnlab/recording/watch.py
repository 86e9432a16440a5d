"""Noticing what else than recorded calls writes a layer's running buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab.borrowing import count_writes, hold_the_same
from bnlab.layer_trace import LayerTrace
from bnlab.layers import BatchNorm


class Average(NamedTuple):
    """A layer's running average."""

    mean: Tensor
    var: Tensor
    momentum: float | None


class _Call(NamedTuple):
    """A recorded call: the momentum of its entry, and `num_batches_tracked` after it."""

    momentum: float
    updates: int


_OFTEN = 16  # calls


class Watch:
    """Tells what else than recorded calls has written a layer's own buffers, by a copy that only these write.

    Args:
        layer: whose buffers they are.
        entries: its recorded calls; replays begin again in them where something else has written.
        own: its running average now.

    Attributes:
        updates: `num_batches_tracked`, when it was last looked at; 0 for a layer without.
        unrecorded: batches by which something else has trained the layer.
    """

    def __init__(self, layer: BatchNorm, entries: LayerTrace, own: Average) -> None:
        self.unrecorded, self._was_overwritten = 0, False
        self._buffers, self._entries = layer._buffers, entries
        self.updates = entries.updates
        self._calls: list[_Call] = []  # that were recorded
        self._keep(torch.stack(own[:2]).detach())
        self._before: tuple[Tensor | None, int] | None = None  # what was left before the latest restart, if it is known
        self.look(own)

    def look(self, own: Average) -> None:
        """Take the buffers as they are for what the calls have left."""
        self._mean, self._var, self._batches = own.mean, own.var, self._buffers.get("num_batches_tracked")
        self._mean_version, self._var_version = count_writes(self._mean), count_writes(self._var)
        self._batches_version = count_writes(self._batches)
        self._shared = own.mean.data, own.var.data

    def _keep(self, values: Tensor | None) -> None:
        """Take [2, C] for what the calls have left; None: that is to be computed."""
        with torch.inference_mode(False):
            self._left = None if values is None else values.clone()
        self._left_values = () if self._left is None else self._left.unbind()

    def update(self, own: Average, moments: Sequence[Tensor], momentum: float) -> None:
        """Average a call's moments into the layer's own buffers, and into what is expected of them."""
        averages = [*self._share_values(own.mean, own.var), *self._left_values]
        torch._foreach_lerp_(averages, [*moments, *moments], momentum)
        self._calls.append(_Call(momentum, self.updates))

    def expect(self, moments: Sequence[Tensor], momentum: float) -> None:
        """What a block around this one will average into the buffers after a call."""
        torch._foreach_lerp_(self._left_values, tuple(moments), momentum)
        self._calls.append(_Call(momentum, self.updates))

    def follow(self, own: Average, momentum: float) -> None:
        """Take the buffers as a call has left them, which has averaged its moments itself."""
        self.look(own)
        self._keep(torch.stack(own[:2]).detach())
        self._calls.append(_Call(momentum, self.updates))

    def _share_values(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The same memory with versions of its own: writing there does not break a backward pass still to come.

        Torch itself updates running buffers so.
        """
        # Making them takes as long as the update; `.data = ...` may have given a buffer other memory.
        shared = self._shared
        if mean is self._mean and var is self._var and shared[0].is_set_to(mean) and shared[1].is_set_to(var):
            return shared
        return mean.data, var.data

    def is_written(self, own: Average) -> bool:
        """Whether the buffers are others than at the last look, or have been written since."""
        return (
            own.mean is not self._mean
            or own.var is not self._var
            or self._buffers.get("num_batches_tracked") is not self._batches
            or self._entries.truncated
            or count_writes(self._mean) != self._mean_version
            or count_writes(self._var) != self._var_version
            or count_writes(self._batches) != self._batches_version
        )

    def count_updates(self) -> int:
        """How often the layer has counted a batch since the last look, as is right in a call."""
        before, batches, version = self.updates, self._batches, count_writes(self._batches)
        writes = version - self._batches_version
        if batches is not None and (writes or version < 0):
            # Usually one write adds one; reading the value waits for an accelerator. Compiled code writes twice, and of
            # inference tensors nobody counts writes.
            self.updates = before + 1 if writes == 1 else int(batches)
        self._batches_version = version
        return self.updates - before

    def is_due(self) -> bool:
        """Whether the buffers are to be compared before a call: each time, an accelerator would have to be waited for.

        What a write has left there is forgotten in about 16/momentum calls, until float32 does not show it any more.
        """
        calls = len(self._calls)
        return calls < _OFTEN or calls % _OFTEN == 0

    def compare(self, own: Average) -> None:
        """Notice what has written the buffers since the last call and left no trace."""
        self._was_overwritten |= not self.is_left_by_calls(own)

    def take_up(self, own: Average, step: int) -> None:
        """Begin again after `step` if the buffers are not what the recorded calls have left."""
        batches, entries = self._buffers.get("num_batches_tracked"), self._entries
        updates = 0 if batches is None else int(batches)
        # Counting adds 1 at a time, loading writes any number at once. A call writes the mean without a trace; compiled
        # code writes both twice, and arithmetic (mul_, add_) the mean more than once.
        writes = count_writes(batches) - self._batches_version
        is_one_load = writes == 1 == count_writes(self._mean) - self._mean_version
        if batches is self._batches and 0 < updates - self.updates <= writes and not is_one_load:
            self.unrecorded += updates - self.updates
        values = torch.stack(own[:2]).detach()
        if entries.truncated:
            del self._calls[len(entries) :]
            entries.truncated, self._before = False, None
            self._go_back()
        if not (self._fit(values, updates) or (self.drop_restart(step) and self._fit(values, updates))):
            self._before = self._left, self.updates
            entries.restart(values, updates, step)
        self.updates = updates
        self._keep(values)
        self.look(own)

    def drop_restart(self, step: int) -> bool:
        """Forget what was written since the last call, if there is such; what that call had left is expected again."""
        if not self._entries.drop_restart(step):
            return False
        if self._before is None:
            self._go_back()
        else:
            self._keep(self._before[0])
            self.updates = self._before[1]
        return True

    def _go_back(self) -> None:
        """Expect what the calls have left that are recorded still."""
        self._keep(None)
        calls = self._calls_since_start()
        self.updates = calls[-1].updates if calls else self._entries.last_start.updates

    def _calls_since_start(self) -> list[_Call]:
        return self._calls[self._entries.last_start.entries :]

    def _fit(self, values: Tensor, updates: int) -> bool:
        """Whether the recorded calls have left these values, and so many updates."""
        return updates == self.updates and self._holds(values)

    def is_left_by_calls(self, own: Average) -> bool:
        """Whether the buffers hold the average of what was recorded."""
        return self._holds(torch.stack(own[:2]).detach())

    def is_overwritten(self, own: Average) -> bool:
        """Whether the buffers hold something else than the average of what was recorded, or have held it before."""
        return self._was_overwritten or not self.is_left_by_calls(own)

    def _holds(self, values: Tensor) -> bool:
        """Whether these are the layer's own average of what is recorded."""
        if self._left is not None:
            return hold_the_same(values, self._left.to(values))  # the model may have been moved, or rounded
        # What the calls up to some step have left is not kept, but computed: the layer's own have rounded at each.
        average, memory = self._entries.average([call.momentum for call in self._calls_since_start()])
        mean, var = average
        rounding = 8 * torch.finfo(values.dtype).eps * (memory + 1)
        scale = torch.stack((mean.abs() + var.abs().sqrt(), var.abs())) + torch.finfo(values.dtype).tiny
        values = values.cpu().double()
        close = (values - average).abs() <= rounding * scale
        return bool((close | (values.isnan() & average.isnan())).all())
