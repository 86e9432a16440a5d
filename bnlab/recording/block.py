"""Recording a model inside a `with` block.

With momentum 1 the running buffers that torch's batch norm writes *are* the batch's mean and unbiased variance. In the
block a layer's forward writes them into a place of the trace, and the layer's own average is updated from there.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from bnlab.arguments import check_number
from bnlab.borrow import count_loans
from bnlab.layers import TORCH_FORWARDS, BatchNorm, batch_norm_layers, get_input, get_running_buffers, join_names
from bnlab.nn.self_tuned import SelfTuned
from bnlab.recording.trace import NOT_WRITTEN, LayerTrace, MomentTrace, Shelf
from bnlab.statistics import read_buffers


@contextlib.contextmanager
def record(model: nn.Module, *, step: int = 0, optimizer: torch.optim.Optimizer | None = None) -> Iterator[MomentTrace]:
    """Record the moments of every batch that `model` is trained on inside the block, one entry for each layer call.

    Training is bit for bit as without it, the running buffers to float32 rounding. Layers in eval mode and measurements
    of the model are not recorded, a subclass's own forward by a second read of its input. Call `torch.compile` inside.

    A step is an update of the model's parameters by a torch optimizer, or a call of `trace.step()`, with all train-mode
    forwards since the one before; updates without a forward between are one. Until the first, forwards are counted.

    Activation checkpointing leaves two entries, as torch makes two updates of the buffers; with selective policies
    (`context_fn`) it writes wrong values into buffers and trace. `nn.DataParallel` on several devices is not supported.

    Args:
        step: the step at which the model is when recording begins.
        optimizer: whose updates alone count as steps.

    Raises:
        TypeError, ValueError: an argument is none of these; no batch-norm layer with running statistics.

    Warns:
        UserWarning: when the block ends. Buffers are not the average of what was recorded (replays are), nothing was
            recorded, or several forwards are on one step, and no update was seen.
    """
    layers = batch_norm_layers(model, caller="record")
    check_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"record: optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer, or None")
    shelf = Shelf()
    entries = {name: LayerTrace(read_buffers(x), _count_batches(x), x.eps, shelf) for name, x in layers.items()}
    trace = MomentTrace(entries, int(step))
    counter = _StepCounter(trace, model, optimizer)
    recorders = {name: _Recorder(layer, entries[name], counter) for name, layer in layers.items()}
    with contextlib.ExitStack() as undo:
        undo.callback(register_optimizer_step_post_hook(torch.compiler.disable(counter.end_update)).remove)
        undo.callback(model.register_forward_pre_hook(_Lent(counter.begin_forward, _do_nothing)).remove)
        for recorder in recorders.values():
            recorder.attach(undo)
        trace.end_step = counter.end_step
        undo.callback(setattr, trace, "end_step", None)
        yield trace
    if not counter.has_counted and any(len(layer) > 1 for layer in trace.layers.values()):
        text = "record: no update by an optimizer was seen, nor a forward of the model as a whole: all is on one step"
        warnings.warn(f"{text}; call trace.step() after each update", stacklevel=3)
    if counter.has_counted and not any(len(layer) for layer in trace.layers.values()):
        warnings.warn("record: nothing was recorded, as no batch-norm layer was in train mode", stacklevel=3)
    now = dict(model.named_modules())
    if unlike := [name for name, of in recorders.items() if now.get(name) is not layers[name] or not of.verify()]:
        text = f"record: the running buffers of {join_names(unlike)} are not the average of what was recorded: "
        text += "they were written (load_state_dict, DistributedDataParallel), the layers replaced, or trained past "
        warnings.warn(f"{text}their recorded forward (call torch.compile inside of the block)", stacklevel=3)


def _count_batches(layer: BatchNorm) -> int:
    return 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)


def _do_nothing(*_: object) -> None:
    """What copies of a recorded model have in place of its hook."""


class _Lent:
    """What is called in the block; copied and pickled models have their `own` instead."""

    def __init__(self, call: Callable[..., Any], own: Callable[..., Any]) -> None:
        self._call, self._own = torch.compiler.disable(call), own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (self._own,)


class _StepCounter:
    """Which step it is."""

    def __init__(self, trace: MomentTrace, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self._trace, self._optimizer, self._parameters = trace, optimizer, set(map(id, model.parameters()))
        self._counts_updates, self._is_open = optimizer is not None, False
        self.loans = count_loans()  # measurements that ran when the block began; what runs in others is no training
        self.has_counted = False  # an update, or a forward of the model

    def begin_forward(self, module: nn.Module, args: object) -> None:
        """The hook before a forward of the model."""
        if count_loans() == self.loans and any(part.training for part in module.modules()):
            if not self._counts_updates:
                self.has_counted, self._is_open = True, False
            self.find_step()

    def find_step(self) -> int:
        """The step of what is called now."""
        if not self._is_open:
            self._is_open = True
            self._trace.last_step += 1
        return self._trace.last_step

    def end_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """The hook after a step of any optimizer."""
        updated = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        if optimizer is self._optimizer or (self._optimizer is None and not self._parameters.isdisjoint(updated)):
            self.end_step()

    def end_step(self) -> None:
        """Count an update."""
        trace, self.has_counted = self._trace, True
        if not self._counts_updates:  # the first one: what was recorded before belongs to it
            self._counts_updates = True
            trace.last_step = min(trace.last_step, trace.first_step + 1)
            for layer in trace.layers.values():
                layer.steps = [trace.last_step] * len(layer)
        self._is_open = False


class _Recorder:
    """The forward of one layer inside of the block, in place of its `own`."""

    def __init__(self, layer: BatchNorm, entries: LayerTrace, counter: _StepCounter) -> None:
        self._layer, self._entries, self._counter = layer, entries, counter
        self._dims = 0  # of an input that torch's forward has checked
        self._missed = 0  # calls that have left no entry, which torch may have counted
        self._given: Callable[..., Any] | None = vars(layer).get("forward")
        self.own = self._given or types.MethodType(type(layer).forward, layer)
        of_torch = self._given is None and type(layer).forward in TORCH_FORWARDS
        is_tuned = self._given is None and type(layer).forward is SelfTuned.forward
        self._run = self._run_torch if of_torch else self._run_self_tuned if is_tuned else self._run_own

    def attach(self, undo: contextlib.ExitStack) -> None:
        given: Any = (delattr,) if self._given is None else (setattr, self._given)
        undo.callback(given[0], self._layer, "forward", *given[1:])
        self._layer.forward = _Lent(self.call, self.own)  # type: ignore[method-assign]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._layer
        if not layer.training or not layer.track_running_stats or count_loans() != self._counter.loans:
            return self.own(*args, **kwargs)
        if not get_input(args, kwargs).numel():  # torch counts a batch of no images, and averages nothing
            self._missed += 1
            return self.own(*args, **kwargs)
        return self._run(*args, **kwargs)

    # A call that raises leaves an entry if it has taken its statistics: checkpointing ends its second one so.
    def _run_torch(self, input: Tensor) -> Tensor:
        """What torch's own forward computes; it checks the first input itself, and inputs with other dimensions."""
        place = self._next_place()
        try:
            return (self._compute if input.dim() == self._dims else self._compute_lent)(input, place)
        finally:
            if sys.exc_info()[0] is not None and bool((place[1] == NOT_WRITTEN).all()):
                self._missed += 1
            else:
                momentum = self._weigh()
                for buffer, value in zip(get_running_buffers(self._layer), place, strict=True):
                    buffer.data.lerp_(value, momentum)  # .data: a backward pass still to come may have saved the buffer
                self._add(input, momentum)

    def _compute(self, input: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
        layer = self._layer
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
        return F.batch_norm(input, *place, layer.weight, layer.bias, True, 1.0, layer.eps)

    def _compute_lent(self, input: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
        """By torch's own forward, which only averages into the buffers: it gets the place as such."""
        layer, own, momentum = self._layer, get_running_buffers(self._layer), self._layer.momentum
        try:
            (layer.running_mean, layer.running_var), layer.momentum = place, 1.0
            output: Tensor = self.own(input)
            self._dims = 0 if isinstance(layer, nn.SyncBatchNorm) else input.dim()
            return output
        finally:
            (layer.running_mean, layer.running_var), layer.momentum = own, momentum

    def _run_self_tuned(self, input: Tensor) -> Tensor:
        """A forward that writes the batch's moments into a place of its own, and averages by itself."""
        if count_loans():  # it does as torch's own does then
            return self._run_torch(input)
        layer: Any = self._layer
        layer.latest = None
        output: Tensor = self.own(input)
        if layer.latest is not None:
            for place, value in zip(self._next_place(), layer.latest, strict=True):
                place.copy_(value)
            self._add(input, 0.0)
        return output

    def _run_own(self, *args: Any, **kwargs: Any) -> Any:
        """Any other forward: the entry is the moments of its input, read again."""
        x, before = get_input(args, kwargs).detach(), get_running_buffers(self._layer)[1].clone()
        try:
            return self.own(*args, **kwargs)
        finally:
            if sys.exc_info()[0] is None or not torch.equal(get_running_buffers(self._layer)[1], before):
                moments = torch.var_mean(x.to(before.dtype), [dim for dim in range(x.dim()) if dim != 1])
                for place, value in zip(self._next_place(), reversed(moments), strict=True):
                    place.copy_(value)
                self._add(x, self._weigh())

    def _next_place(self) -> tuple[Tensor, Tensor]:
        return self._entries.next_place(get_running_buffers(self._layer)[0])

    def _add(self, input: Tensor, momentum: float) -> None:
        self._entries.add(self._counter.find_step(), input.numel() // input.shape[1], momentum)

    def _weigh(self) -> float:
        """The weight of the latest batch in the layer's own average."""
        momentum, batches = self._layer.momentum, self._layer.num_batches_tracked
        if momentum is None:
            return 0.0 if batches is None else 1.0 / float(batches)
        return momentum

    def verify(self) -> bool:
        """Whether the layer's buffers are what the entries average to; a self-tuned layer averages by itself."""
        entries, layer = self._entries, self._layer
        entries.end = read_buffers(layer)
        if isinstance(layer, SelfTuned):
            return True
        kept = torch.tensor([*(1 - m for m in entries.momenta), 1.0], dtype=torch.float64, device="cpu")
        left = kept.flip(0).cumprod(0).flip(0)  # of what was there before each call, and after the last one
        weights, moments = left[1:] - left[:-1], entries.moments.double()
        weighted = torch.einsum("t,tkc->kc", weights, moments.where(weights[:, None, None] != 0, 0.0))
        expected, end = left[0] * entries.start.cpu().double() + weighted, entries.end.cpu().double()
        scale = torch.stack((expected[0].abs() + expected[1].abs().sqrt(), expected[1].abs()))
        rounding = 8 * torch.finfo(entries.end.dtype).eps * (float(left[1:].abs().sum()) + 1)
        same = ((end - expected).abs() <= rounding * scale) | ~(end.isfinite() | expected.isfinite())
        missed = _count_batches(layer) - entries.updates - len(entries)
        may_not_count = self._run == self._run_own or layer.num_batches_tracked is None
        return bool(same.all()) and (may_not_count or 0 <= missed <= self._missed)
