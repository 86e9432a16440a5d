"""Running buffers that hold what a bank of averages gives out, whenever somebody looks at them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.borrowing import count_writes
from bnlab.estimators.bank import FEWEST
from bnlab.nn.collector import Collector

_Buffers = dict[str, Any]  # a layer's own; which are tensors
_EARLY = 5  # beginnings in a row, each after a few batches: by then it is no chance

# A thread that looks at a layer writes its buffers; to the one that trains it that is no write of somebody else's.
# One lock for all layers: locks can be neither copied nor pickled.
LOOKING = threading.RLock()


class _Seen(NamedTuple):
    """Running buffers as they were left: the tensors, how often each has been written, their values."""

    mean: Tensor
    var: Tensor
    versions: tuple[int, int]
    values: Tensor


class Upkeep:
    """What a self-tuned layer keeps beside its buffers.

    Args:
        buffers: the layer's, by name.
        eps: the layer's.
        momentum: the layer's when it was converted.

    Attributes:
        collector: the batches so far.
        is_behind: whether there may be batches that the buffers do not show yet.
        beginnings: how often the averages have begun from the buffers.
        last: [C] each, mean and variance of the batch that was taken last; None if the last call has not ended well or
            was the repetition of an earlier one.
    """

    def __init__(self, buffers: _Buffers, eps: float, momentum: float | None) -> None:
        start = _stack(buffers)
        self.collector = Collector(start, _count_updates(buffers), eps)
        self._momentum, self._has_warned, self._is_shared = momentum, False, False
        self.is_behind, self.beginnings = False, 0
        self._takes_first = False  # whether any forward outside of a backward pass has been taken
        self._cut_short = 0  # how often in a row the averages have begun again before they could choose
        self.last: tuple[Tensor, Tensor] | None = None
        self.look(buffers)

    def stands_aside(self, momentum: float | None) -> bool:
        """Whether somebody else averages now, who has set this momentum: `update_bn`, or another precise batch norm.

        Warns:
            UserWarning: it has no effect; said once.
        """
        if momentum == self._momentum or momentum == 0:
            return False
        if momentum is None or momentum == 1:
            return True
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "SelfTuned: the momentum of a layer has been changed, which has no effect: it chooses its own; for a "
                "plain average of all batches use torch.optim.swa_utils.update_bn, or SelfTuned.revert",
                stacklevel=2,
            )
        return False

    def leaves_out(self, *, is_off: bool) -> bool:
        """Whether the averages leave this forward out: it is off by its flags, or repeats one that they have taken.

        A forward within a backward pass repeats an earlier one: activation checkpointing. Some of it (fairscale's)
        turns the averages off in every first one, for the second to be taken.
        """
        if torch._C._current_graph_task_id() != -1:
            return is_off or self._takes_first
        self._takes_first |= not is_off
        return is_off

    def warn_of_shared_memory(self, buffers: _Buffers) -> None:
        """Say once that other processes can read and write the buffers: their batches are not seen here."""
        storage = buffers["running_mean"].untyped_storage()
        if not self._is_shared and storage.device.type == "cpu" and storage.is_shared():
            self._is_shared = True
            warnings.warn(
                "SelfTuned: the running buffers are in shared memory; each process that trains chooses by its own "
                "batches, and they hold what one of them has looked at last; use plain layers, or train a model in "
                "each process",
                stacklevel=2,
            )

    def _warn_of_early_beginnings(self) -> None:
        """Say once that something writes the buffers so often that no momentum is ever chosen.

        In all ranks but the first DistributedDataParallel does, and gives the first one's statistics to all.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return
        if taken := self.collector.count_batches():
            self._cut_short = self._cut_short + 1 if taken <= FEWEST else 0
            if self._cut_short == _EARLY:
                warnings.warn(
                    "SelfTuned: something writes a layer's running buffers after every few batches, where its averages "
                    "begin again, too soon to choose a momentum; if buffers are put back after a forward that is not "
                    "to be averaged, set momentum=0 for it instead",
                    stacklevel=2,
                )

    def look(self, buffers: _Buffers) -> None:
        """Take the buffers as they are for what has been left."""
        mean, var = buffers["running_mean"], buffers["running_var"]
        self._seen = _Seen(mean, var, (count_writes(mean), count_writes(var)), _stack(buffers))

    def begin_where_written(self, buffers: _Buffers, *, certainly: bool = False) -> None:
        """Begin from the buffers if something else has written them: `load_state_dict`, `reset_running_stats`.

        Args:
            certainly: compare the values also where no write has been counted, as of those through `.data`.
        """
        mean, var = buffers["running_mean"], buffers["running_var"]
        with LOOKING:
            seen = self._seen
            same = mean is seen.mean and var is seen.var and (count_writes(mean), count_writes(var)) == seen.versions
            if same and not certainly:
                return
            if not self.is_held_by(buffers):
                self.begin(buffers)
            self.look(buffers)

    def is_held_by(self, buffers: _Buffers) -> bool:
        """Whether the buffers have the values that were left in them."""
        return torch.equal(_stack(buffers), self._seen.values)

    def begin(self, buffers: _Buffers) -> None:
        """Forget all batches, and let the averages begin from the buffers."""
        self._warn_of_early_beginnings()
        self.collector.begin(_stack(buffers), _count_updates(buffers))
        self.is_behind, self.beginnings = False, self.beginnings + 1
        self.look(buffers)

    def catch_up(self, buffers: _Buffers) -> None:
        """Write into the buffers what is given out after all batches so far."""
        with LOOKING:
            self.is_behind = False
            self.begin_where_written(buffers)
            state = self.collector.state()
            if state is not None:
                with torch.inference_mode(buffers["running_mean"].is_inference()), torch.no_grad():
                    buffers["running_mean"].copy_(state[0])
                    buffers["running_var"].copy_(state[1])
                self.look(buffers)

    def move(self, buffers: _Buffers) -> None:
        """Follow buffers that have been moved or converted."""
        self.collector.move(_stack(buffers))
        self.look(buffers)

    def export(self) -> dict[str, Any]:
        """What a checkpoint needs beside buffers that have caught up."""
        return self.collector.export() | {"shown": self._seen.values}

    def load(self, buffers: _Buffers, saved: Mapping[str, Any] | None) -> None:
        """Take up what `export` gave if the buffers are those of then; otherwise begin from them."""
        self.begin(buffers)
        now = self._seen.values
        if saved is not None and saved["shown"].shape == now.shape and torch.equal(saved["shown"].to(now), now):
            self.collector.load(saved)


def _stack(buffers: _Buffers) -> Tensor:
    """[2, C], a copy of the running mean and variance."""
    return torch.stack((buffers["running_mean"], buffers["running_var"])).detach()


def _count_updates(buffers: _Buffers) -> int:
    """How many batches have made the buffers what they are; one at least where nobody counts."""
    batches: Tensor | None = buffers.get("num_batches_tracked")
    return 1 if batches is None else int(batches)
