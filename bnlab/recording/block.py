"""Recording a model inside a `with` block.

With momentum 1 the running buffers that torch's batch norm writes *are* the batch's mean and unbiased variance. In the
block a layer's forward writes them into a place of the trace, and the layer's own average is updated from there: the
moments cost no second pass over the activations, and nothing is lent that would have to be given back.
"""

from __future__ import annotations

import contextlib
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

    Training is bit for bit as without it, the running buffers to float32 rounding. Layers in eval mode are not
    recorded, nor measurements of the model inside the block (`population_statistics`, say). A subclass with a forward
    of its own is recorded by a second read of its input. Call `torch.compile` inside of the block.

    A step is an update of the model's parameters by a torch optimizer, or a call of `trace.step()`; it has all
    train-mode forwards since the update before. Updates without a forward between them are one step. Until the first
    update, forwards of the model are counted.

    Activation checkpointing runs forwards twice and leaves two entries, as torch makes two updates of the buffers; with
    selective policies (`context_fn`) it writes wrong values into buffers and trace. `nn.DataParallel` trains copies,
    which are not recorded.

    Args:
        model: whose training it is.
        step: the step at which the model is when recording begins.
        optimizer: whose updates alone count as steps.

    Raises:
        TypeError: not a module, `step` is no integer, or `optimizer` no torch optimizer.
        ValueError: no batch-norm layer with running statistics, or a negative step.

    Warns:
        UserWarning: when the block ends. The buffers of layers are not the average of what was recorded: something
            else has written them (`load_state_dict`), or has trained the layer past its recorded forward (code that
            was compiled before the block). Or several forwards are on one step, and no update was seen.
    """
    layers = batch_norm_layers(model, caller="record")
    check_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"record: optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer, or None")
    shelf = Shelf()
    trace = MomentTrace({name: _begin(layer, shelf) for name, layer in layers.items()}, int(step))
    counter = _StepCounter(trace, model, optimizer)
    recorders = {name: _Recorder(layer, trace.layers[name], counter) for name, layer in layers.items()}
    with contextlib.ExitStack() as undo:
        # Not by decorators: importing torch's compiler takes a second.
        undo.callback(register_optimizer_step_post_hook(torch.compiler.disable(counter.end_update)).remove)
        undo.callback(model.register_forward_pre_hook(torch.compiler.disable(counter.begin_forward)).remove)
        for recorder in recorders.values():
            undo.enter_context(recorder.attached())
        trace.end_step = counter.end_step
        undo.callback(setattr, trace, "end_step", None)
        yield trace
    if not counter.has_counted and any(len(layer) > 1 for layer in trace.layers.values()):
        warnings.warn(
            "record: no update of the model's weights by an optimizer was seen, nor a forward of the model as a whole: "
            "all is on one step; call trace.step() after each update",
            stacklevel=3,
        )
    if unlike := [name for name, recorder in recorders.items() if not recorder.verify()]:
        warnings.warn(
            f"record: the running buffers of {join_names(unlike)} are not the average of what was recorded, so that "
            "replays give something else: something has written them (load_state_dict, or DistributedDataParallel with "
            "the buffers of the first rank), or has trained the layers past their recorded forward (call torch.compile "
            "inside of the block)",
            stacklevel=3,
        )


def _begin(layer: BatchNorm, shelf: Shelf) -> LayerTrace:
    batches = layer.num_batches_tracked
    return LayerTrace(read_buffers(layer), 0 if batches is None else int(batches), layer.eps, shelf)


class _StepCounter:
    """Which step it is.

    Attributes:
        loans: how many measurements of models ran when the block began; what runs in others is no training.
        has_counted: whether an update or a forward of the model has been seen.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self._trace, self._model, self._optimizer = trace, model, optimizer
        self._parameters = set(map(id, model.parameters()))
        self._counts_updates, self._is_open = optimizer is not None, False
        self.loans, self.has_counted = count_loans(), False

    def __deepcopy__(self, memo: object) -> _StepCounter:
        return self  # its hook, which a copied model has too, knows the model that is recorded

    def begin_forward(self, module: nn.Module, args: object) -> None:
        """The hook before a forward of the model."""
        if module is not self._model or count_loans() != self.loans:
            return
        if module.training or any(part.training for part in module.modules()):
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
        own = (parameter for group in optimizer.param_groups for parameter in group["params"])
        if optimizer is self._optimizer or (
            self._optimizer is None and any(id(parameter) in self._parameters for parameter in own)
        ):
            self.end_step()

    def end_step(self) -> None:
        """Count an update."""
        trace, self.has_counted = self._trace, True
        if not self._counts_updates:  # the first one: what was recorded before belongs to it
            self._counts_updates = True
            trace.last_step = min(trace.last_step, trace.first_step + 1)
            for layer in trace.layers.values():
                layer.steps[:] = [trace.last_step] * len(layer)
        self._is_open = False


class _Forward:
    """A layer's `forward` in the block; copied and pickled layers get their own back."""

    def __init__(self, recorder: _Recorder) -> None:
        self._own, self._call = recorder.own, torch.compiler.disable(recorder.call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._own.__self__, self._own.__name__)  # type: ignore[attr-defined]


class _Recorder:
    """The forward of one layer inside of the block.

    Attributes:
        own: what it calls without recording.
    """

    def __init__(self, layer: BatchNorm, entries: LayerTrace, counter: _StepCounter) -> None:
        self._layer, self._entries, self._counter = layer, entries, counter
        self._dims = 0  # of the first input, which torch's forward has checked
        self._missed = 0  # calls that the layer has counted, and that have left no entry
        self._given: Callable[..., Any] | None = vars(layer).get("forward")
        self.own = self._given or types.MethodType(type(layer).forward, layer)
        runs: dict[Any, Callable[..., Any]] = dict.fromkeys(TORCH_FORWARDS, self._run_torch)
        runs[SelfTuned.forward] = self._run_self_tuned
        self._run = self._run_own if self._given else runs.get(type(layer).forward, self._run_own)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        self._layer.forward = _Forward(self)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._layer.forward
            if self._given is not None:
                self._layer.forward = self._given  # type: ignore[method-assign]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._layer
        if not layer.training or not layer.track_running_stats or count_loans() != self._counter.loans:
            return self.own(*args, **kwargs)
        if not get_input(args, kwargs).numel():  # torch counts a batch of no images, and averages nothing
            self._missed += 1
            return self.own(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run_torch(self, input: Tensor) -> Tensor:
        """What torch's own forward computes; it checks the first input itself, and inputs with other dimensions."""
        place = self._entries.next_place()
        try:
            return (self._compute if input.dim() == self._dims else self._compute_lent)(input, place)
        finally:
            # A call that raises leaves an entry if it has taken its statistics: checkpointing ends its second one so.
            if sys.exc_info()[0] is not None and bool((place[1] == NOT_WRITTEN).all()):
                self._missed += 1
            else:
                self._take(place, input)

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
        layer: Any = self._layer
        if count_loans():  # it does as torch's own does then
            return self._run_torch(input)
        layer.latest = None
        output: Tensor = self.own(input)
        if layer.latest is not None:
            for place, value in zip(self._entries.next_place(), layer.latest, strict=True):
                place.copy_(value)
            self._entries.add(self._counter.find_step(), input.numel() // input.shape[1], 0.0)
        return output

    def _run_own(self, *args: Any, **kwargs: Any) -> Any:
        """Any other forward, which may do what it likes: the entry is the moments of its input, read again."""
        x, place = get_input(args, kwargs).detach(), self._entries.next_place()
        output = self.own(*args, **kwargs)
        var, mean = torch.var_mean(x.to(place[0].dtype), [dim for dim in range(x.dim()) if dim != 1])
        place[0].copy_(mean), place[1].copy_(var)
        self._entries.add(self._counter.find_step(), x.numel() // x.shape[1], self._weigh())
        return output

    def _weigh(self) -> float:
        """The weight of the latest batch in the layer's own average."""
        momentum, batches = self._layer.momentum, self._layer.num_batches_tracked
        if momentum is None:
            return 0.0 if batches is None else 1.0 / float(batches)
        return momentum

    def _take(self, place: tuple[Tensor, Tensor], input: Tensor) -> None:
        """Make an entry of what has been written into its place, and let the layer's own average go on."""
        momentum = self._weigh()
        for buffer, value in zip(get_running_buffers(self._layer), place, strict=True):
            buffer.data.lerp_(value, momentum)  # .data: a backward pass still to come may have saved the buffer
        self._entries.add(self._counter.find_step(), input.numel() // input.shape[1], momentum)

    def verify(self) -> bool:
        """Whether the layer's buffers are what the entries average to; a self-tuned layer averages by itself."""
        entries, batches = self._entries, self._layer.num_batches_tracked
        entries.end = read_buffers(self._layer)
        if isinstance(self._layer, SelfTuned):
            return True
        kept = torch.tensor([*(1 - m for m in entries.momenta), 1.0], dtype=torch.float64, device="cpu")
        left = kept.flip(0).cumprod(0).flip(0)  # of what was there before each call, and after the last one
        weights, moments = left[1:] - left[:-1], entries.moments.double()
        weighted = torch.einsum("t,tkc->kc", weights, moments.where(weights[:, None, None] != 0, 0.0))
        expected, end = left[0] * entries.start.cpu().double() + weighted, entries.end.cpu().double()
        scale = torch.stack((expected[0].abs() + expected[1].abs().sqrt(), expected[1].abs()))
        rounding = 8 * torch.finfo(entries.start.dtype).eps * (float(left[1:].abs().sum()) + 1)
        same = ((end - expected).abs() <= rounding * scale) | (end.isnan() & expected.isnan())
        counted = entries.updates + len(entries) + self._missed
        return bool(same.all()) and (batches is None or int(batches) == counted)
