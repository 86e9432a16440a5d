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


class Watch:
    """Tells what else than recorded calls has written a layer's own buffers, by a copy that only these write.

    Args:
        layer: whose buffers they are.
        entries: its recorded calls; replays begin again in them where something else has written.
        own: its running average now.

    Attributes:
        unrecorded: batches by which something else has trained the layer.
    """

    def __init__(self, layer: BatchNorm, entries: LayerTrace, own: Average) -> None:
        self.unrecorded = 0
        self._buffers, self._entries = layer._buffers, entries
        self._updates = entries.updates
        self._momenta: list[float] = []  # of the recorded calls
        self._keep(torch.stack(own[:2]).detach())
        self._before = self._left, self._updates  # before the latest restart
        self.look(own)

    def look(self, own: Average) -> None:
        """Take the buffers as they are for what the calls have left."""
        self._mean, self._var, self._batches = own.mean, own.var, self._buffers.get("num_batches_tracked")
        self._mean_version, self._var_version = count_writes(self._mean), count_writes(self._var)
        self._batches_version = count_writes(self._batches)
        self._shared = own.mean.data, own.var.data

    def _keep(self, values: Tensor | None) -> None:
        """Take [2, C] for what the calls have left; None: what they have left after `truncate` is to be computed."""
        with torch.inference_mode(False):
            self._left = None if values is None else values.clone()
        self._left_values = () if self._left is None else self._left.unbind()

    def update(self, own: Average, moments: Sequence[Tensor], momentum: float) -> None:
        """Average a call's moments into the layer's own buffers, and into what is expected of them."""
        averages = [*self._share_values(own.mean, own.var), *self._left_values]
        torch._foreach_lerp_(averages, [*moments, *moments], momentum)
        self._momenta.append(momentum)

    def expect(self, moments: Sequence[Tensor], momentum: float) -> None:
        """What a block around this one will average into the buffers after a call."""
        torch._foreach_lerp_(self._left_values, tuple(moments), momentum)
        self._momenta.append(momentum)

    def follow(self, own: Average, momentum: float) -> None:
        """Take the buffers as a call has left them, which has averaged its moments itself."""
        self.look(own)
        self._keep(torch.stack(own[:2]).detach())
        self._momenta.append(momentum)

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
        before, batches, version = self._updates, self._batches, count_writes(self._batches)
        writes = version - self._batches_version
        if batches is not None and writes:
            # Usually one write adds one; reading the value waits for an accelerator. Compiled code writes twice.
            self._updates = before + 1 if writes == 1 else int(batches)
        self._batches_version = version
        return self._updates - before

    def take_up(self, own: Average, step: int) -> None:
        """Begin again after `step` if the buffers are not what the recorded calls have left."""
        batches, entries = self._buffers.get("num_batches_tracked"), self._entries
        updates = 0 if batches is None else int(batches)
        # Counting adds 1 at a time, loading writes any number at once. A call writes the mean without a trace; compiled
        # code writes both twice, and arithmetic (mul_, add_) the mean more than once.
        writes = count_writes(batches) - self._batches_version
        is_one_load = writes == 1 == count_writes(self._mean) - self._mean_version
        if batches is self._batches and 0 < updates - self._updates <= writes and not is_one_load:
            self.unrecorded += updates - self._updates
        values = torch.stack(own[:2]).detach()
        if entries.truncated:
            del self._momenta[len(entries) :]
            entries.truncated = False
            self._keep(None)
        if not (self._fit(values, updates) or (self.drop_restart(step) and self._fit(values, updates))):
            self._before = self._left, self._updates
            entries.restart(values, updates, step)
        self._updates = updates
        self._keep(values)
        self.look(own)

    def drop_restart(self, step: int) -> bool:
        """Forget what was written since the last call, if there is such; what that call had left is expected again."""
        if not self._entries.drop_restart(step):
            return False
        self._updates = self._before[1]
        self._keep(self._before[0])
        return True

    def _fit(self, values: Tensor, updates: int) -> bool:
        """Whether the recorded calls have left these values, and so many updates."""
        entries = self._entries
        # A layer also counts batches that leave no entry, empty ones for instance: after `truncate` not known how many.
        if self._left is None and entries.calls_since_start:
            return self._holds(values)
        return updates == (entries.updates_now if self._left is None else self._updates) and self._holds(values)

    def is_left_by_calls(self, own: Average) -> bool:
        """Whether the buffers hold the average of what was recorded."""
        return self._holds(torch.stack(own[:2]).detach())

    def is_overwritten(self, own: Average) -> bool:
        """Whether the buffers hold something else than the average of what was recorded."""
        return not self.is_left_by_calls(own)

    def _holds(self, values: Tensor) -> bool:
        """Whether these are the layer's own average of what is recorded."""
        entries = self._entries
        if self._left is not None:
            return hold_the_same(values, self._left.to(values))  # the model may have been moved, or rounded
        # What the calls up to some step have left is not kept, but computed: the layer's own have rounded at each.
        mean, var = average = entries.average(self._momenta)
        rounding = torch.finfo(values.dtype).eps * 8 * (entries.calls_since_start + 1)
        scale = torch.stack((mean.abs() + var.abs().sqrt(), var.abs())) + torch.finfo(values.dtype).tiny
        values = values.cpu().double()
        close = (values - average).abs() <= rounding * scale
        return bool((close | (values.isnan() & average.isnan())).all())
