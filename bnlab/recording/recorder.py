"""The hooks of one layer: what is recorded of a call, and how the layer's own average goes on meanwhile."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab.layers import BatchNorm, layer_input
from bnlab.recording.steps import StepCounter
from bnlab.recording.watch import Average, Watch, count_writes
from bnlab.trace import MomentTrace

_PROXY = torch._C._TorchDispatchModeKey.PROXY


class Loan(NamedTuple):
    """Places for an entry that a layer has instead of `taken` for the time of a call, by one thread."""

    slot: tuple[Tensor, ...]
    version: int  # of the mean among them
    values: int
    taken: Average
    thread: int


# A layer's own average, by the identity of the mean that it has on loan: blocks inside of blocks lend in turn.
_own_averages: dict[int, Average] = {}


class Recorder:
    """The hooks of one layer: lend scratch buffers and momentum 1; take the entry, give the own ones back.

    Args:
        name, layer: which layer it is.
        trace: what its entries go to.
        counter: what is told of calls that no module surrounds.
        trained: a parameter that tells an update where the layer has none of its own.

    Attributes:
        name, layer: which layer it is.
        watch: what tells that something else has written the layer's own buffers.
        overwritten: whether its buffers are found to be neither what was recorded nor noticed to be written.
    """

    def __init__(
        self, name: str, layer: BatchNorm, trace: MomentTrace, counter: StepCounter, trained: Tensor | None
    ) -> None:
        self.name, self.layer, self.overwritten = name, layer, False
        self._trace, self._entries, self._counter = trace, trace.layers[name], counter
        self._buffers, self._attributes = layer._buffers, vars(layer)  # nn.Module's own way to set them is slow
        self._called = False
        self._loan: Loan | None = None
        self._ended = False
        weight = layer.weight
        self._trained = trained if weight is None or not weight.requires_grad else weight
        self._trained_version: int | None = None
        self._keeps_moments = False  # whether own code of the layer has been seen to
        self.watch = Watch(layer, self._entries, self._averages()[1])

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layer
        # A deep copy carries the hooks along, and code that was compiled inside of the block calls them after it.
        if module is not layer or self._ended:
            return
        if self._called:
            self._end_interrupted_call()
        # A layer that does not track leaves its buffers alone.
        if not layer.training or not layer.track_running_stats:
            return
        count = layer_input(args, kwargs).numel() // layer.num_features
        if is_tracing():
            raise ValueError(
                f"record: layer {self.name!r} is traced or exported in train mode; do that before the block or after it"
            )
        held, own = self._averages()
        if self.watch.is_written(own):
            self._check_precision(own)
            self.watch.take_up(own)
        self._called = True
        if count == 0:  # torch lets an empty batch pass and leaves the buffers as they are
            return
        self._counter.enter_layer(layer)
        slot = self._trace.slot(self._entries)
        _own_averages[id(slot[0])] = own
        self._loan = Loan(slot, slot[0]._version, count, held, threading.get_ident())
        if own.momentum != self.watch.momentum:
            self.watch.momentum_varied = True
        self._buffers["running_mean"], self._buffers["running_var"] = slot
        self._attributes["momentum"] = 1.0

    def _check_precision(self, own: Average) -> None:
        kept = self._entries.start
        if (own.mean.dtype, own.mean.device) != (kept.dtype, kept.device):
            raise ValueError(
                f"record: layer {self.name!r} is {own.mean.dtype} on {own.mean.device} now, was {kept.dtype} on "
                f"{kept.device}; move or convert the model before the block"
            )

    def after(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if module is not self.layer or not self._called:
            return
        self._called, loan = False, self._loan
        updated = self.watch.count_updates()
        if loan is None:
            return
        replaced = self._buffers["running_mean"] is not loan.slot[0] or self._buffers["running_var"] is not loan.slot[1]
        self._give_back(loan)
        # It raised; after its statistics were taken where gradient checkpointing ends a second forward inside of it.
        if output is None and not (loan.slot[0].any() or loan.slot[1].any()):
            return
        if updated > 1:
            raise ValueError(
                f"record: layer {self.name!r} takes its statistics {updated} times in one call (ghost batch norm?), of "
                "which only the last could be recorded"
            )
        if replaced or not (self._keeps_moments or self._check_moments(loan, layer_input(args, {}))):
            raise ValueError(
                f"record: layer {self.name!r} averages in a way of its own, not by its momentum and in place, which "
                "cannot be recorded; use one of torch's batch norms"
            )
        self._append(loan.values)
        mean, var, momentum = loan.taken
        if momentum is None:
            batches = self.layer.num_batches_tracked
            momentum = 0.0 if batches is None else 1.0 / float(batches)
        torch._foreach_lerp_(self.watch.share_values(mean, var), loan.slot, momentum)

    def _check_moments(self, loan: Loan, x: object) -> bool:
        """Whether the buffers hold the batch's moments where not torch, but the layer's own code, has written them.

        Torch's batch norm leaves no trace in the version. Looked at in the first call with such a write only.
        """
        if loan.slot[0]._version == loan.version or not isinstance(x, Tensor):
            return True
        self._keeps_moments = True
        var, mean = torch.var_mean(x.detach().float(), [0, *range(2, x.dim())])
        near = (loan.slot[0] - mean).abs() <= 0.01 * (mean.abs() + var.sqrt())
        # Of a few values the two divisors differ much.
        alike = (loan.slot[1] <= 1.01 * var) & (loan.slot[1] >= 0.99 * var * (1 - 1 / loan.values))
        return bool((near & alike).all()) or not bool(mean.isfinite().all())

    def end(self) -> None:
        """Give back what is lent still, and look for the last time what was written past the hooks."""
        if self._called:
            self._end_interrupted_call()
        self._ended = True
        self.take_up_writes()
        self.overwritten = self.watch.is_overwritten(self._averages()[1])

    def take_up_writes(self) -> None:
        """Begin again where something has written the buffers since the last call."""
        _, own = self._averages()
        if self._loan is None and self.watch.is_written(own):
            self.watch.take_up(own)

    def _end_interrupted_call(self) -> None:
        """Hooks are not called after a KeyboardInterrupt."""
        if self._loan is not None and self._loan.thread != threading.get_ident():
            raise ValueError(
                f"record: layer {self.name!r} is called by two threads at once; give each thread a model of its own"
            )
        self.after(self.layer, (), None)

    def _averages(self) -> tuple[Average, Average]:
        """What the layer has now, and what it has when nothing is lent."""
        mean: Any = self._buffers["running_mean"]  # nn.Module's own way to get them is slow too
        held = Average(mean, self._buffers["running_var"], self._attributes["momentum"])  # type: ignore[arg-type]
        return held, _own_averages.get(id(mean), held)

    def _give_back(self, loan: Loan) -> None:
        self._loan = None
        del _own_averages[id(loan.slot[0])]
        self._buffers["running_mean"], self._buffers["running_var"], self._attributes["momentum"] = loan.taken

    def _append(self, count: int) -> None:
        entries = self._entries
        step, version = self._counter.begin_entry(), count_writes(self._trained)
        if version != self._trained_version and entries.steps and entries.steps[-1] == step:
            self._counter.warn_of_updates_within(step, self.name)
        self._trained_version = version
        entries.steps.append(step)
        entries.counts.append(count)


def is_tracing() -> bool:
    """Whether the operations that run now go into a graph of torch.jit.trace, torch.export or make_fx."""
    proxies = torch._C._get_dispatch_mode(_PROXY)
    return torch._C._get_tracing_state() is not None or proxies is not None or torch.compiler.is_exporting()
