"""Noticing what else than recorded calls writes a layer's running buffers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bnlab.borrowing import count_writes
from bnlab.layer_trace import LayerTrace
from bnlab.layers import BatchNorm


class Average(NamedTuple):
    """A layer's running average."""

    mean: Tensor
    var: Tensor
    momentum: float | None


class Watch:
    """Tells what else than recorded calls has written a layer's own buffers.

    Args:
        layer: whose buffers they are.
        entries: its recorded calls; replays begin again in them where something else has written.
        own: its running average now.

    Attributes:
        momentum: the layer's when the block began.
        momentum_varied: whether it has had another one since.
        unrecorded: batches by which something else has trained the layer.
    """

    def __init__(self, layer: BatchNorm, entries: LayerTrace, own: Average) -> None:
        self.momentum, self.momentum_varied, self.unrecorded = layer.momentum, False, 0
        self._buffers, self._entries = layer._buffers, entries
        self._updates = entries.updates
        self.look(own)

    def look(self, own: Average) -> None:
        """Take the buffers as they are for what the calls have left."""
        self._mean, self._var, self._batches = own.mean, own.var, self._buffers.get("num_batches_tracked")
        self._mean_version, self._var_version = count_writes(self._mean), count_writes(self._var)
        self._batches_version = count_writes(self._batches)
        self._shared = own.mean.data, own.var.data

    def share_values(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
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
        if not (self._fit(values, updates) or (entries.drop_restart(step) and self._fit(values, updates))):
            entries.restart(values, updates, step)
        entries.truncated, self._updates = False, updates
        self.look(own)

    def _fit(self, values: Tensor, updates: int) -> bool:
        """Whether the recorded calls have left these values, and so many updates."""
        batches = self._buffers.get("num_batches_tracked")
        return updates == (0 if batches is None else self._entries.updates_now) and self._holds(values)

    def is_left_by_calls(self, own: Average) -> bool:
        """Whether the buffers hold the average of what was recorded, to rounding."""
        return self._holds(torch.stack(own[:2]).detach())

    def is_overwritten(self, own: Average) -> bool:
        """Whether the buffers hold something else than the average of what was recorded, as far as that is known."""
        return not self.momentum_varied and not self.is_left_by_calls(own)

    def _holds(self, values: Tensor) -> bool:
        """Whether these are the layer's own average of what is recorded, to rounding."""
        entries, momentum = self._entries, self.momentum
        if momentum is None and self._buffers.get("num_batches_tracked") is None:
            momentum = 0.0
        mean, var = average = entries.average(momentum)
        # A layer that has not been called since holds exactly what was written. Otherwise each update rounds, and is
        # forgotten after 1/momentum others; each sum has a few roundings.
        memory = 1.0
        if entries.calls_since_start:
            memory = entries.updates_now + 1 if momentum is None else 1 / momentum if momentum else 1
        tolerance = 8 * torch.finfo(values.dtype).eps * memory
        scale = torch.stack((mean.abs() + var.abs().sqrt(), var.abs()))
        values = values.cpu().double()
        close = (values - average).abs() <= tolerance * scale
        return bool((close | (values == average) | (values.isnan() & average.isnan())).all())
