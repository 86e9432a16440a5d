"""A task: what is measured and by which processes, how a batch is evaluated, and what its layers normalize with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bnlab.model.batches import Forward, copy_batch
from bnlab.model.calls import read_normalized
from bnlab.model.layers import BatchNorm, get_running_buffers, has_own_forward, select_input, unwrap_parallel
from bnlab.model.reading import DeviceMoments, Reader
from bnlab.statistics.moments import Moments, fetch

CALLER = "population_statistics"
Layers = Mapping[str, BatchNorm]


@dataclass
class Task:
    """What a caller gave: a model, batches, and how one is evaluated.

    Attributes:
        model: the caller's.
        root: the model without wrappers for several devices: this is called.
        layers: the layers that are measured, by name.
        forward: called with the model and a copy of a batch.
        device: the device that batches are copied to.
        data: the batches that have been read, in their order.
        ranks: the processes that measure together.
        reader: reads the moments of what they normalize.
        channels_last: whether images are laid out with the channels innermost, in which the CPU computes faster.
        not_seen: layers with a forward of their own that were called without a batch-norm operation of torch's.
        checks_all: whether all batches are checked, and not some of them.
    """

    model: nn.Module
    layers: Layers
    forward: Forward
    device: torch.device
    data: list[Any]
    ranks: Ranks
    reader: Reader
    channels_last: bool = False
    not_seen: dict[str, None] = field(default_factory=dict)
    checks_all: bool = False

    def __post_init__(self) -> None:
        self.root = unwrap_parallel(self.model)
        # These are kept, so that `require_same_buffers` notices when a forward puts others in their place.
        self._running = dict(zip(self.layers, map(get_running_buffers, self.layers.values()), strict=True))

    def run_all(self) -> None:
        """Run the forward of each batch."""
        for batch in self.data:
            self.evaluate(batch)

    def evaluate(self, batch: Any, is_as_given: bool = False) -> Any:
        """Run the forward of a copy of a batch; `is_as_given`: in the caller's layout in memory."""
        # A forward may write into its batch, and each batch is evaluated several times.
        channels_last = self.channels_last and not is_as_given
        return self.forward(self.root, copy_batch(batch, self.device, channels_last))

    def write(self, name: str, moments: Moments | DeviceMoments) -> None:
        """Write a layer's mean and variance, as they are, into its buffers."""
        mean, var = self._running[name]
        mean.data.copy_(moments.mean)  # .data: a backward pass still to come may have saved the buffer
        var.data.copy_(moments.var)

    def require_same_buffers(self, name: str) -> None:
        """Raise ValueError if a forward has put other buffers in the place of a layer's: these would not be written."""
        buffers = get_running_buffers(self.layers[name])
        if any(now is not before for now, before in zip(buffers, self._running[name], strict=True)):
            raise ValueError(
                f"{CALLER}: the forward puts other buffers in the place of those of layer {name!r}; load them into the "
                "model, and give functional_call parameters only"
            )

    def fetch(self, pooled: Mapping[str, DeviceMoments]) -> dict[str, Moments]:
        """Bring the moments of layers to the CPU; ValueError if a layer cannot normalize with its own."""
        statistics = dict(zip(pooled, fetch(pooled.values()), strict=True))
        for name, moments in statistics.items():
            self.require_usable(name, moments)
        return statistics

    def require_usable(self, name: str, moments: Moments | DeviceMoments) -> None:
        """Raise ValueError unless a layer can normalize with `moments`."""
        if moments.count < 2:
            raise ValueError(
                f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images"
            )
        if not (moments.mean + moments.var).isfinite().all():
            raise ValueError(
                f"{CALLER}: the input of layer {name!r} has NaN or infinite values; look at data and weights, and "
                "whether it is float16, which overflows beyond 65,504"
            )
        # Moments are float64, but the buffers of a half-precision model cannot hold numbers as large.
        dtype = get_running_buffers(self.layers[name])[1].dtype
        if moments.var.max() > torch.finfo(dtype).max:
            raise ValueError(
                f"{CALLER}: the variance of layer {name!r} is beyond {dtype}; scale the data, or use float64"
            )


@contextlib.contextmanager
def looking_at(
    task: Task, layers: Layers, look: Callable[[str, Tensor], object], compares_modes: bool = False
) -> Iterator[None]:
    """Look at layers in the block: before a layer's forward, call `look` with its name and what it normalizes.

    A layer with a forward of its own is run once, to see that. Calls without rows, as of a layer for a kind of node
    that a batch has none of, are passed over. With `compares_modes` ValueError for a layer in another mode at its call
    than now.
    """
    own_forwards = {name for name, layer in layers.items() if has_own_forward(layer)}
    modes = {name: layer.training for name, layer in layers.items()}
    is_reading = False

    def hook(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal is_reading
        if is_reading:  # a layer within the one that is run to be read
            return
        if compares_modes and layers[name].training != modes[name]:
            raise ValueError(
                f"{CALLER}: the forward changes the mode of layer {name!r}, by train() or eval(); leave that out: a "
                "layer in train mode normalizes by its batch"
            )
        if name in own_forwards:
            is_reading = True
            try:
                x = read_normalized(layers[name], args, kwargs)
            finally:
                is_reading = False
        else:
            x = select_input(name, layers[name], args, kwargs, CALLER)
        if x is None and name in own_forwards:
            task.not_seen[name] = None
        if x is None or not x.numel():
            return
        task.require_same_buffers(name)
        look(name, x)

    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            undo.callback(layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True).remove)
        yield


class InterleavingError(Exception):
    """The forwards of the batches cannot take turns, for the reason that is the message.

    Attributes:
        batch: the number of the batch whose forward has failed while others waited; None if none has.
    """

    def __init__(self, reason: str, batch: int | None = None) -> None:
        super().__init__(reason)
        self.batch = batch


# -- processes that measure together ---------------------------------------------------------------------------------


class Ranks:
    """The ranks that measure together. All of them call each method, also a rank that has no batches.

    Args:
        group: their process group; None: this process measures alone.
        caller: the public call, for the message.

    Attributes:
        is_alone: whether this process measures alone.
    """

    def __init__(self, group: Any, caller: str) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"{caller}: group is a {type(group).__name__}; pass a process group")
        self.group = group
        self.is_alone = group is None

    def gather(self, value: Any) -> list[Any]:
        """Collect every rank's value, in the order of ranks."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def merge(self, pooled: DeviceMoments | None) -> DeviceMoments:
        """Merge the moments of all ranks' data; every rank gets the same, to the last bit.

        Args:
            pooled: those of this rank's data; None if it has none. At least one rank has some.
        """
        if self.is_alone and pooled is not None:
            return pooled
        # On the CPU, because each rank may have a device of its own, and only tensors on one device can be merged.
        values = self.gather(None if pooled is None else (pooled.count, pooled.mean.cpu(), pooled.var.cpu()))
        moments = [Moments(*value) for value in values if value is not None]
        # All ranks merge in the order of ranks, because rounding depends on the order.
        merged = moments[0]
        for other in moments[1:]:
            merged = merged.merge(other)
        return DeviceMoments(int(merged.count), merged.mean, merged.var)

    def run_together(self, work: Callable[[], Any]) -> Any:
        """Run this rank's share of the work, and return its result; an exception of one rank is raised on all."""
        if self.is_alone:
            return work()
        own_error: Exception | None = None
        try:
            result = work()
        except Exception as error:
            own_error = error

        # A rank that has failed takes part in the exchange, too: the others would wait for it forever.
        gathered = self.gather(_describe(own_error))
        failures = {rank: failure for rank, failure in enumerate(gathered) if failure is not None}
        if not failures:
            return result

        # An error of data or model goes before one that only asks for another way to measure.
        serious = {rank: failure for rank, failure in failures.items() if not failure.cannot_interleave}
        candidates = serious or failures
        rank = min(candidates)
        first = candidates[rank]
        # A rank's exception keeps its type and traceback on that rank. The other ranks only get its message.
        if own_error is not None and isinstance(own_error, InterleavingError) == first.cannot_interleave:
            raise own_error
        # All ranks raise the same kind: after an InterleavingError they go on layer by layer together.
        kind = InterleavingError if first.cannot_interleave else ValueError
        raise kind(f"rank {rank} failed: {first.message}") from own_error


class _Failure(NamedTuple):
    """An exception as the other ranks get to know it; it may be one that cannot be pickled itself."""

    cannot_interleave: bool
    message: str


def _describe(error: Exception | None) -> _Failure | None:
    return None if error is None else _Failure(isinstance(error, InterleavingError), str(error))
