"""Recorders: what takes the place of a layer's own forward inside of a `record` block.

With momentum 1 the running buffers that torch's batch norm writes *are* the batch's mean and unbiased variance.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from bnlab.model.borrow import count_loans, is_lent
from bnlab.model.calls import NormCall, NormCallMode, join_values
from bnlab.model.layers import (
    TORCH_FORWARDS,
    AveragesByItself,
    BatchNorm,
    count_channels,
    find_replaced_forward,
    get_batch_count,
    get_input,
    get_momentum,
    get_running_buffers,
)
from bnlab.recording.steps import StepCounter
from bnlab.recording.trace import NOT_WRITTEN, LayerTrace

DOES_NOTHING = logging.getLogger("bnlab").debug
"""What a hook is in copies and pickles of a model: it is found where bnlab is not installed."""

_MOST_ROUNDING = 0.02  # of moments that are added up plainly: beyond it the bound grows, and what is seen does not
Place = tuple[Tensor, Tensor]
"""Tensors [C] of a trace, into which the mean and the unbiased variance of its next entry are written."""


class RecordingCall:
    """A function in the place of a layer's forward, or of a hook, for the time of a block.

    Copies and pickles, which outlive the block, have the function `layer_forward` instead.

    Attributes:
        replaced: the forward that somebody had set on the layer before; see `find_replaced_forward`.
    """

    def __init__(
        self, call: Callable[..., Any], layer_forward: Callable[..., Any], replaced: Callable[..., Any] | None = None
    ) -> None:
        # Entries are counted in Python, and must not be traced into compiled code.
        self._call = torch.compiler.disable(call)
        self._layer_forward = layer_forward
        self.replaced = replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        forward = self._layer_forward
        while isinstance(forward, RecordingCall):  # of a block around this one
            forward = forward._layer_forward
        owner = getattr(forward, "__self__", None)
        # A copy of the layer is copied with it, so that the forward of a copy is its own.
        if isinstance(owner, nn.Module) and getattr(type(owner), "forward", None) is getattr(forward, "__func__", None):
            return getattr, (owner, "forward")
        return functools.partial, (forward,)


def count_averaged(layer: nn.Module, x: Tensor) -> int:
    """Count the values in a channel that a layer averages: of a SyncBatchNorm those of all processes.

    Their shares of a batch are taken to be equal, as DistributedSampler makes them.
    """
    count = x.numel() // x.shape[1]
    if isinstance(layer, nn.SyncBatchNorm) and distributed.is_available() and distributed.is_initialized():
        count *= distributed.get_world_size(layer.process_group)
    return count


class Recorder(ABC):
    """Records the batch moments that a layer averages.

    Attributes:
        layer: the layer.
        entries: its part of the trace.
        counter: counts the steps.
        layer_forward: the layer's own forward.
        missed: number of calls that have left no entry, and that torch may have counted in `num_batches_tracked`.
        is_left: whether the layer was left to its own forward, because its input cannot be read.
        averages_by_itself: whether the layer averages in another way than its momentum says.
        may_not_count: whether the layer may leave its calls uncounted.
        rounding: how far the moments that the layer computes itself may be off, relative to their size; 0 where those
            that are recorded are the layer's own.
    """

    averages_by_itself = False
    rounding = 0.0

    def __init__(self, layer: BatchNorm, entries: LayerTrace, counter: StepCounter) -> None:
        self.layer = layer
        self.entries = entries
        self.counter = counter
        self._ids = frozenset((id(layer),))
        # The number need not be 0: `record_frozen` records a model that it has borrowed itself.
        self._loans = count_loans(self._ids)
        self.missed = 0
        self.is_left = False
        self.may_not_count = get_batch_count(layer) is None
        # What somebody has set on this very layer; None: it has its class's forward.
        self._instance_forward: Callable[..., Any] | None = vars(layer).get("forward")
        self.layer_forward: Callable[..., Any] = layer.forward

    def attach(self, undo: contextlib.ExitStack) -> None:
        """Take the place of the layer's forward until `undo` is closed."""
        if self._instance_forward is None:
            undo.callback(delattr, self.layer, "forward")
        else:
            undo.callback(setattr, self.layer, "forward", self._instance_forward)
        replaced = find_replaced_forward(self.layer)
        self.layer.forward = RecordingCall(self.call, self.layer_forward, replaced)  # type: ignore[method-assign]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's forward, as it is in the block."""
        layer = self.layer
        keeps_statistics = getattr(layer, "track_running_stats", True)  # norms of other classes lack it
        is_training = layer.training and keeps_statistics and count_loans(self._ids) == self._loans
        if not is_training or self.is_left:
            return self.layer_forward(*args, **kwargs)

        x = get_input(args, kwargs)
        if isinstance(x, Tensor) and not x.numel():  # torch counts a batch of no images, and averages nothing
            self.missed += 1
            return self.layer_forward(*args, **kwargs)
        return self.run(*args, **kwargs)

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Give what the layer's own forward gives, and make an entry of the call."""

    def next_place(self) -> Place:
        """Return the place for the next entry."""
        return self.entries.next_place(get_running_buffers(self.layer)[0])

    def add(self, x: Tensor, momentum: float) -> None:
        """Make an entry of the values in the next place, which are the moments of `x`."""
        self.entries.add(self.counter.enter_step(), count_averaged(self.layer, x), momentum)

    def compute_weight(self) -> float:
        """Compute the weight of the latest batch in the layer's own average."""
        momentum = get_momentum(self.layer)
        if momentum is not None:
            return momentum
        batches = get_batch_count(self.layer)
        # This is what torch does without a momentum: all batches weigh the same, and the count includes this one. A
        # layer without a count averages nothing.
        return 0.0 if batches is None else 1.0 / float(batches)

    def agrees_with_entries(self) -> bool:
        """Return whether the layer's buffers, as they were read at the end, are what the entries average to."""
        if self.entries.end is None:
            return False
        # There is nothing to compare with, because such a layer does not say how it weighs its batches.
        if self.averages_by_itself:
            return True
        # These are batches that torch has counted and that have no entry. If there are more than were missed, some went
        # past this recorder; if there are fewer than none, the count was written.
        without_entry = count_batches(self.layer) - self.entries.updates - len(self.entries)
        is_count_right = self.may_not_count or 0 <= without_entry <= self.missed
        is_average = any(_is_average(self.entries, moments, self.rounding) for moments in self.list_readings())
        return is_average and is_count_right

    def list_readings(self) -> list[Tensor]:
        """List what the layer may have averaged, [calls, 2, C]: the moments that were recorded."""
        return [self.entries.moments.double()]


class TorchRecorder(Recorder):
    """Recorder of a layer with torch's own forward, which writes the batch's moments into the entry's place."""

    def __init__(self, layer: BatchNorm, entries: LayerTrace, counter: StepCounter) -> None:
        super().__init__(layer, entries, counter)
        self._accepted_dims = 0  # dimensions of an input that torch's own forward has accepted

    def run(self, input: Tensor) -> Tensor:
        """Compute what torch's own forward computes.

        That one runs itself, and checks the input, in the first call and whenever the input has other dimensions.
        """
        place = self.next_place()
        # Torch's own forward is slower here, because it needs its buffers swapped, and setting an attribute of a module
        # searches its registries each time.
        is_accepted = input.dim() == self._accepted_dims
        try:
            output = self._normalize(input, place) if is_accepted else self._normalize_by_layer(input, place)
        except BaseException:
            # Checkpointing ends its second forward by an exception, after the layer has taken its statistics. The
            # variance of a place is no longer negative then.
            if bool((place[1] == NOT_WRITTEN).all()):
                self.missed += 1
            else:
                self._average(input, place)
            raise
        self._average(input, place)
        return output

    def _normalize(self, input: Tensor, place: Place) -> Tensor:
        layer = self.layer
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
        mean, var = place
        # Momentum 1 overwrites the running average: the place then holds the moments of the batch.
        return F.batch_norm(input, mean, var, layer.weight, layer.bias, True, 1.0, layer.eps)

    def _normalize_by_layer(self, input: Tensor, place: Place) -> Tensor:
        """Let torch's own forward normalize; it finds the place where it looks for its buffers."""
        layer = self.layer
        mean, var = get_running_buffers(layer)
        momentum = layer.momentum
        try:
            layer.running_mean, layer.running_var = place
            layer.momentum = 1.0
            output: Tensor = self.layer_forward(input)
        finally:
            layer.running_mean, layer.running_var = mean, var
            layer.momentum = momentum
        # Only its own forward synchronizes the processes of a SyncBatchNorm, so that it has to run each time.
        if not isinstance(layer, nn.SyncBatchNorm):
            self._accepted_dims = input.dim()
        return output

    def _average(self, input: Tensor, place: Place) -> None:
        """Average the moments in a place into the layer's buffers, and make an entry of them."""
        # `compute_weight` needs the count that the forward has just increased.
        weight = self.compute_weight()
        # Averaging all layers at once, after the forward, would launch fewer kernels. But the forward may
        # read these buffers, or fail half way.
        for buffer, value in zip(get_running_buffers(self.layer), place, strict=True):
            buffer.data.lerp_(value, weight)  # .data: a backward pass still to come may have saved the buffer
        self.add(input, weight)


class OwnAveragesRecorder(TorchRecorder):
    """Recorder of a layer that averages by itself, and has the batch's moments in a place of its own."""

    averages_by_itself = True

    def run(self, input: Tensor) -> Tensor:
        if is_lent(self.layer):  # in a measurement it does what torch's own does
            return super().run(input)
        layer: Any = self.layer
        layer.latest = None
        output: Tensor = self.layer_forward(input)
        if layer.latest is not None:
            # The entry needs memory of its own: `latest` is part of the layer's averages.
            for place, value in zip(self.next_place(), layer.latest, strict=True):
                place.copy_(value)
            # The weight is not known; 0 stands for it, and `agrees_with_entries` does not use it.
            self.add(input, 0.0)
        return output


class OwnForwardRecorder(Recorder):
    """Recorder of a layer with any other forward; it reads what the layer gives to torch's batch norm.

    Of a layer with arithmetic of its own it reads the input, and a layer whose input it cannot read is left to its own
    forward, so that training goes on whatever the layer does.
    """

    def __init__(self, layer: BatchNorm, entries: LayerTrace, counter: StepCounter) -> None:
        super().__init__(layer, entries, counter)
        # Torch's own forward counts batches; another one may not.
        self.may_not_count = True
        # Whether it averages by torch's batch norm; None before it has averaged.
        self._calls_torch: bool | None = None

    def list_readings(self) -> list[Tensor]:
        """List the moments that were recorded, and the same with biased variances, which a layer may average too."""
        (unbiased,) = super().list_readings()
        biased = unbiased.clone()
        for variance, count in zip(biased[:, 1], self.entries.counts, strict=True):
            variance.mul_(1 - 1 / count)
        return [unbiased, biased]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        # Before the layer may write into it, as InPlaceABN does.
        x = None if self._calls_torch else self._read(args, kwargs)
        before = get_running_buffers(self.layer)[1].clone()
        values: list[Tensor] = []

        def note(call: NormCall) -> None:
            if call.name is not None and call.uses_batch:
                values.append(call.x.detach().clone())

        # The moments have been written by now, but only `_enter` makes an entry of them. If a call fails before it
        # averages, the next one overwrites them.
        looks = contextlib.nullcontext() if self._calls_torch is False else NormCallMode({"": self.layer}, note)
        try:
            with looks:
                output = self.layer_forward(*args, **kwargs)
        except BaseException:
            if not torch.equal(get_running_buffers(self.layer)[1], before):  # it has averaged before it failed
                self._enter(self._join(values, x))
            raise
        if values:
            self._calls_torch = True
        elif not torch.equal(get_running_buffers(self.layer)[1], before):
            self._calls_torch = False
        is_unread = self._calls_torch is None and not self._can_be_read(x)
        if values or self._calls_torch is False or is_unread:
            self._enter(self._join(values, x))
        else:  # nothing is averaged, as where a mask leaves nothing
            self.missed += 1
        return output

    def _join(self, values: list[Tensor], x: Any) -> Any:
        """Join what the layer's operations were given, and write its moments; its input `x` where none was seen."""
        if not values:
            return x
        joined = join_values(values)
        self._write(joined)
        return joined

    @torch.no_grad()
    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write the moments of what is normalized into the next place, if it can be read; return what it is."""
        x = get_input(args, kwargs)
        if self._can_be_read(x):
            self._write(x)
        return x

    @torch.no_grad()
    def _write(self, x: Tensor) -> None:
        mean_place, var_place = self.next_place()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        # The variance is unbiased and has the buffers' type, which may be wider than the input's under autocast.
        var, mean = torch.var_mean(x.detach().to(mean_place.dtype), dims)
        mean_place.copy_(mean)
        var_place.copy_(var)

    def _enter(self, x: Any) -> None:
        """Make an entry of the moments that were read of `x`."""
        if self._can_be_read(x):
            self.add(x, self.compute_weight())
            self.rounding = max(self.rounding, _bound_rounding(x))
        elif isinstance(x, Tensor) and not x.numel():
            self.missed += 1
        else:
            self.is_left = True

    def _can_be_read(self, x: Any) -> bool:
        """Return whether it is [N, C, ...] with all of the layer's channels, and not empty."""
        channels = count_channels(self.layer)
        is_activation = isinstance(x, Tensor) and x.dim() >= 2 and x.shape[1] == channels and not x.is_complex()
        return is_activation and x.numel() > 0


def make_recorder(layer: BatchNorm, entries: LayerTrace, counter: StepCounter) -> Recorder:
    """Make the recorder for a layer, according to its forward."""
    forward = type(layer).forward
    # A forward that somebody has set on this layer counts as another one, even if it calls torch's.
    if "forward" in vars(layer):
        return OwnForwardRecorder(layer, entries, counter)
    if forward in TORCH_FORWARDS:
        return TorchRecorder(layer, entries, counter)
    if isinstance(layer, AveragesByItself) and forward.__module__.startswith("bnlab."):  # no forward of a subclass
        return OwnAveragesRecorder(layer, entries, counter)
    return OwnForwardRecorder(layer, entries, counter)


def count_batches(layer: BatchNorm) -> int:
    """Read the layer's `num_batches_tracked`; 0 for a layer without."""
    batches = get_batch_count(layer)
    return 0 if batches is None else int(batches)


def _bound_rounding(x: Tensor) -> float:
    """Bound how far moments of `x` may be off, relative to their size, where a layer computes them in its own way."""
    rounding = 0.0
    # It may round them to the type of its input, as `x.mean()` does.
    if x.is_floating_point():
        rounding += torch.finfo(x.dtype).eps
    # Or it calls torch's, which on the CPU adds up one value after the other where channels are innermost in memory, or
    # where the input has half precision. Each addition rounds by half of eps at most, and most of that cancels: behind
    # a ReLU the variance was off by 9e-4 of 131,072 values, and by 3e-3 of four million.
    if x.device.type == "cpu" and (not x.is_contiguous() or x.element_size() < 4):
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
        rounding += min(_MOST_ROUNDING, x.numel() / x.shape[1] * eps / 2)
    return rounding


def _is_average(entries: LayerTrace, moments: Tensor, rounding: float) -> bool:
    """Return whether the end is the average of the start and these moments of all entries, up to rounding.

    Non-finite values match each other. `rounding`: how far the moments that the layer averaged may be off from these,
    relative to their size.

    A call with momentum m leaves a share 1 − m of what was there before it. So the start has the product of all these
    shares as its weight, and an entry m times the product of those after it.
    """
    assert entries.end is not None
    shares = [1 - momentum for momentum in entries.momenta]
    factors = torch.tensor([*shares, 1.0], dtype=torch.float64, device="cpu")

    remaining = factors.flip(0).cumprod(0).flip(0)  # of what was there before each call, and after the last one
    # The weight of an entry is m·remaining[t + 1]. As remaining[t] = (1 − m)·remaining[t + 1], it is this
    # difference.
    weights = remaining[1:] - remaining[:-1]

    weighed = moments.where(weights[:, None, None] != 0, 0.0)  # NaN without weight does not count
    sum_of_entries = torch.einsum("t,tkc->kc", weights, weighed)
    expected = remaining[0] * entries.start.cpu().double() + sum_of_entries

    # Each call rounds by at most eps of the values, and later calls keep `remaining` of that error, so that the errors
    # add up to this sum. A mean near 0 is computed from values of the size of σ, and is rounded relative to these.
    end = entries.end.cpu().double()
    size_of_mean = expected[0].abs() + expected[1].abs().sqrt()
    size_of_var = expected[1].abs()
    info = torch.finfo(entries.end.dtype)
    roundings = 8 * (float(remaining[1:].abs().sum()) + 1)
    of_moments = float(weights.abs().sum()) * rounding
    off = roundings * info.eps + of_moments
    # The variance has the square of the mean's error too, from which its deviations are taken.
    tolerance = torch.stack((off * size_of_mean, off * size_of_var + (off * size_of_mean).square()))
    # What has decayed below the smallest normal number is rounded by steps that get no smaller, or is set to 0.
    tolerance += roundings * max(info.tiny * info.eps, torch.finfo(torch.float32).tiny)
    is_near = (end - expected).abs() <= tolerance
    are_both_non_finite = ~(end.isfinite() | expected.isfinite())
    return bool((is_near | are_both_non_finite).all())
