"""Recording the batch moments of a training run.

With momentum 1 a batch-norm layer's running buffers *are* the last batch's mean and unbiased variance. `record` lends
each layer a scratch pair of buffers for the time of one call and updates the layer's own average itself, so that the
moments cost no second pass over the activations and whoever looks at the model sees what would be there without it.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from bnlab.arguments import check_batches, check_forward, check_number, device_of
from bnlab.layers import (
    BatchNorm,
    Forward,
    batch_norm_layers,
    borrowed,
    call,
    check_not_lent,
    copy_batch,
    get_running_buffers,
    is_compiled,
    join_names,
    layer_input,
    mark_resting,
)
from bnlab.module_state import ModuleState, forward_hooks
from bnlab.trace import LayerTrace, MomentTrace

_PROXY = torch._C._TorchDispatchModeKey.PROXY


@contextlib.contextmanager
def record(model: nn.Module, *, step: int = 0, optimizer: torch.optim.Optimizer | None = None) -> Iterator[MomentTrace]:
    """Record the moments of every batch that `model` is trained on inside the block.

    Parameters, outputs and `num_batches_tracked` are bit for bit those of training without it; the running buffers
    are the model's own EMA to float32 rounding, at any moment at which code outside the layer can look. Layers in
    eval mode are not recorded, nor what runs while the model is borrowed (by `population_statistics`, say); a call
    that raises before the layer has taken its statistics leaves no entry. Meanwhile the model's `state_dict()` can be
    saved, the module itself cannot (hooks are not pickled), and its precision must stay. `torch.compile` belongs inside
    the block, where each recorded layer interrupts the graph.

    A step is, in this order of preference,

    - an update: a call of `trace.step()`, or of `optimizer.step()` where the optimizer is given. All forwards since the
      last one belong to it, as with accumulated gradients, or with several networks in one model;
    - a train-mode forward of the model;
    - where only parts of the model are called, as of a container of several networks: such a forward of a part that
      has been called in this step already. (Of two parts that are called in turn, both are on the same step.)

    Where something writes a layer's running buffers (`load_state_dict`, `reset_running_stats`, `write_to`), replays
    begin again from what has been written.

    Args:
        step: the step at which the model is when recording begins.
        optimizer: whose updates count as steps.

    Raises:
        TypeError: not a module, `step` is no integer, or `optimizer` no torch optimizer.
        ValueError: no batch-norm layer with running statistics, a model that has been compiled or that another thread
            is measuring, or a negative step; inside of the block, a layer that takes its statistics several times in a
            call, averages by code that does not go by its momentum, is called by two threads at once, or is traced or
            exported in train mode.

    Warns:
        UserWarning: something has trained a layer past its hooks (code that was compiled before the block, a direct
            `layer.forward`), has written its buffers in a way that leaves no trace, has put another layer into the
            model, or has taken one out of it for some of the training; or the weights were updated within a step.
    """
    layers = batch_norm_layers(model, caller="record")
    check_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"record: optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer, or None")
    if any(map(is_compiled, model.modules())):
        raise ValueError(
            "record: the model is compiled, and its graphs may not call hooks; record the uncompiled model, and call "
            "torch.compile inside of the block"
        )
    check_not_lent(model.modules())
    recording = _Recording(model, layers, int(step))
    with recording.attached(optimizer):
        yield recording.trace
    recording.warn_of_the_unrecorded()
    recording.warn_of_other_layers()
    recording.warn_of_replaced_layers()


class _Recording:
    """One block in which a model is recorded.

    Args:
        model: whose training it is.
        layers: those that are recorded, by name.
        step: the step at which the block begins.

    Attributes:
        trace: what is recorded.
        steps: which step it is.
        replacements: which layers have been out of the model meanwhile.
        recorders: one for each layer.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, BatchNorm], step: int) -> None:
        self._model, self._layers = model, layers
        self.trace = MomentTrace({name: _begin_trace(layer) for name, layer in layers.items()}, first_step=step)
        self.steps = _StepCounter(self.trace, model, layers.values())
        trained = next((p for p in model.parameters() if p.requires_grad), None)
        self.replacements = _Replacements(self.trace, model, layers)
        self.recorders = [_Recorder(name, layer, self.trace, self.steps, trained) for name, layer in layers.items()]

    @contextlib.contextmanager
    def attached(self, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
        """Record what the block trains."""
        with contextlib.ExitStack() as undo:
            self.trace.recording = self
            undo.callback(setattr, self.trace, "recording", None)
            if optimizer is not None:
                self.steps.count_updates_only()
                count_update = torch.compiler.disable(lambda *_: self.end_step())
                undo.callback(optimizer.register_step_post_hook(count_update).remove)
            undo.callback(register_module_module_registration_hook(self.replacements.register).remove)
            for module in self.steps.modules:
                undo.callback(module.register_forward_pre_hook(_hook(self.steps.enter)).remove)
                undo.callback(module.register_forward_hook(_hook(self.steps.leave), always_call=True).remove)
            for recorder in self.recorders:
                layer, before, after = recorder.layer, _hook(recorder.before), _hook(recorder.after)
                undo.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
                # First of all, so that blocks inside of blocks give back in turn, and other hooks see the layer's own.
                undo.callback(layer.register_forward_hook(after, always_call=True, prepend=True).remove)
                undo.callback(recorder.end)
            yield

    def end_step(self) -> None:
        self.steps.end_step()

    def truncate(self, step: int) -> None:
        self.steps.truncate(step)

    def take_up_writes(self) -> None:
        for recorder in self.recorders:
            recorder.take_up_writes()

    def warn_of_the_unrecorded(self) -> None:
        """Say which layers were trained or written past their recorders."""
        missed = {recorder.name: recorder.watch.unrecorded for recorder in self.recorders if recorder.watch.unrecorded}
        if missed:
            most = max(missed.values())
            warnings.warn(
                f"record: {join_names(missed)} were trained on {most} batch{'es' * (most > 1)} past their hooks, which "
                "are not in the trace; code that was compiled before the block, or a direct call of layer.forward does "
                "that",
                stacklevel=4,
            )
        overwritten = [recorder.name for recorder in self.recorders if recorder.overwritten]
        overwritten = [name for name in overwritten if name not in missed]
        if overwritten:
            warnings.warn(
                f"record: the running buffers of {join_names(overwritten)} are not the average of what was recorded: "
                "something has written them, through .data say; what is replayed is not what they hold",
                stacklevel=4,
            )

    def warn_of_other_layers(self) -> None:
        """Say which layers have come into the model, or have taken the place of recorded ones."""
        known = set(map(id, self._layers.values()))
        new = [name for name, m in self._model.named_modules() if isinstance(m, BatchNorm) and id(m) not in known]
        new = [name for name in new if self._model.get_submodule(name).running_mean is not None]
        if new:
            warnings.warn(
                f"record: {join_names(new)} came into the model inside of the block and are not recorded, nor what "
                "they have taken the place of from then on; change the model before the block",
                stacklevel=4,
            )

    def warn_of_replaced_layers(self) -> None:
        """Say which layers were out of the model while it was trained, and are in it again."""
        missed = [name for name in self._layers if name in self.replacements.missed]
        if missed:
            were = "was" if len(missed) == 1 else "were"
            warnings.warn(
                f"record: {join_names(missed)} {were} replaced and put back inside of the block, "
                "with training in between, which is not in the trace; end the block before, and join the traces",
                stacklevel=4,
            )


def _hook(function: Callable[..., None]) -> Callable[..., None]:
    """A hook that compiled code calls as it is, interrupting its graph, and that measurements leave out."""
    # Also a function, not a method: a deep copy of the model does not copy what it belongs to.
    return mark_resting(torch.compiler.disable(function))


def record_frozen(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, training: bool = False
) -> MomentTrace:
    """The batch moments of one pass over `batches` with the weights as they are; `model` comes back as it was.

    Batch-norm layers normalize with their batch's statistics, all else runs as for inference. Replaying running
    estimators on this trace gives the estimators of frozen weights: `Cumulative` what torch's `update_bn` computes,
    which leaves dropout on as `training=True` does.

    Args:
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        training: all else runs as in training too, dropout and the like.

    Raises:
        as `record`; ValueError if there are no batches.
    """
    layers, hooks = batch_norm_layers(model, caller="record_frozen"), forward_hooks(model)
    check_batches(batches, "record_frozen")
    check_forward(forward, "record_frozen")
    place = device_of(model, None, "record_frozen")
    with borrowed(model), torch.no_grad():
        state = ModuleState(model, hooks)
        with record(model) as trace:
            model.train(training)
            for layer in layers.values():
                layer.train()
            for batch in batches:
                state.accept()
                with state.undone():
                    (forward or call)(model, copy_batch(batch, place))
                trace.step()
    if trace.last_step == trace.first_step:
        raise ValueError("record_frozen: batches is empty; pass at least one batch")
    for name, entries in trace.layers.items():
        if not entries.moments.isfinite().all():
            raise ValueError(
                f"record_frozen: the input of layer {name!r} has NaN or infinite values; look at data and weights"
            )
        entries.updates = 0  # an average of this pass alone: what the buffers had seen before is not its start
    return trace


def _begin_trace(layer: BatchNorm) -> LayerTrace:
    updates = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
    return LayerTrace(torch.stack(get_running_buffers(layer)).detach(), updates, layer.eps)


class _StepCounter:
    """Which step it is: counts updates, or forwards of the model or of its outermost parts that are called.

    Args:
        trace: whose `last_step` is the count.
        model: what is recorded.
        layers: its recorded layers.

    Attributes:
        modules: those with a recorded layer inside, which get `enter` and `leave` as hooks.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, layers: Iterable[BatchNorm]) -> None:
        recorded = {id(layer): layer for layer in layers}
        self._trace = trace
        self._ended: int | None = None  # the last step that an update has ended; None: forwards are counted
        self._warned = False
        self._inside = {id(layer): {id(layer): layer} for layer in recorded.values()}
        self.modules: list[nn.Module] = []
        for module in model.modules():
            inside = {id(m): recorded[id(m)] for m in module.modules() if id(m) in recorded}
            if inside and id(module) not in recorded:
                self.modules.append(module)
                self._inside[id(module)] = inside
        self._parts = {id(m): set(map(id, m.modules())) for m in (*self.modules, *recorded.values())}
        self._outermost: tuple[int, int] | None = None  # which module is being called, and by which thread
        self._counting = set[int]()  # modules whose calls count
        self._called = set[int]()  # those of them that have been called in this step
        self._step: int | None = None

    def end_step(self) -> None:
        """Count an update."""
        self._trace.last_step = self._ended = self.count_updates_only() + 1

    def count_updates_only(self) -> int:
        """From now on forwards do not count; the last step that was ended."""
        trace = self._trace
        if self._ended is None:
            self._ended = trace.first_step
            trace.last_step = min(trace.last_step, trace.first_step + 1)
            for layer in trace.layers.values():
                layer.steps = [trace.last_step] * len(layer)
        return self._ended

    def truncate(self, step: int) -> None:
        """Go back to `step`."""
        if self._ended is not None:
            self._ended = min(self._ended, step)

    def begin_entry(self) -> int:
        """The step of an entry that is made now."""
        trace = self._trace
        trace.last_step = max(trace.last_step, (trace.first_step if self._ended is None else self._ended) + 1)
        return trace.last_step

    def warn_of_updates_within(self, step: int, name: str) -> None:
        """Say once that the weights of layer `name` have changed within a step."""
        if self._ended is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"record: the weights of layer {name!r} have changed within step {step}, which is one forward of the "
                "model or of a part; call trace.step() after each update, or pass record(..., optimizer=...)",
                stacklevel=2,
            )

    def enter(self, module: nn.Module, args: object) -> None:
        # A deep copy carries the hooks along.
        if id(module) not in self._parts:
            return
        caller = id(module), threading.get_ident()
        if self._outermost is None:
            self.count(module)
        elif self._outermost[0] != caller[0]:
            return
        elif self._outermost != caller:
            raise ValueError("record: the model is called by two threads at once; give each thread a model of its own")
        else:  # the call before was interrupted: hooks are not called after a KeyboardInterrupt
            self.count(module)
        self._outermost = caller

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        if self._outermost == (id(module), threading.get_ident()):
            self._outermost = None

    def enter_layer(self, layer: BatchNorm) -> None:
        if self._outermost is None:
            self.count(layer)

    def count(self, module: nn.Module) -> None:
        """Begin a step if a call of `module`, which is not inside of another's, is the next one's."""
        trace, key = self._trace, id(module)
        layers = self._inside[key].values()
        if self._ended is not None or not (module.training or any(layer.training for layer in layers)):
            return
        # A part of what counts already: gradient checkpointing runs it again.
        if any(key in self._parts[other] for other in self._counting if other != key):
            return
        self._counting = {other for other in self._counting if other not in self._parts[key]} | {key}
        if key in self._called or self._step != trace.last_step:
            trace.last_step += 1
            self._step, self._called = trace.last_step, set()
        self._called.add(key)


class _Replacements:
    """Notices layers that are taken out of the model and put back: nothing shows it at the end of the block.

    Args:
        trace: whose steps tell whether there was training in between.
        model: what is recorded.
        layers: its recorded layers, by name.

    Attributes:
        missed: names of those that were out of the model while it was trained, and are in it again.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, layers: Mapping[str, BatchNorm]) -> None:
        self._trace = trace
        self._names = {id(layer): name for name, layer in layers.items()}
        self._holders = {id(m) for m in model.modules() if not self._names.keys().isdisjoint(map(id, m.modules()))}
        self._away: dict[int, int] = {}  # layers that are out of the model, by identity, and since which step
        self.missed = set[str]()

    def register(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        """The hook of torch for any module that becomes a part of another one, before it does."""
        before = module._modules.get(name)
        if id(module) not in self._holders or (id(before) not in self._holders and not self._away):
            return
        coming = set() if child is None else {id(part) for part in child.modules()}
        if before is not None:
            going = {id(part) for part in before.modules()} & self._names.keys()
            self._away = dict.fromkeys(going - coming, self._trace.last_step) | self._away
        for layer in coming & self._away.keys():
            if self._away.pop(layer) < self._trace.last_step:
                self.missed.add(self._names[layer])


class _Average(NamedTuple):
    """A layer's running average."""

    mean: Tensor
    var: Tensor
    momentum: float | None


class _Loan(NamedTuple):
    """Places for an entry that a layer has instead of `taken` for the time of a call, by one thread."""

    slot: tuple[Tensor, ...]
    version: int  # of the mean among them
    values: int
    taken: _Average
    thread: int


# A layer's own average, by the identity of the mean that it has on loan: blocks inside of blocks lend in turn.
_own_averages: dict[int, _Average] = {}


class _Recorder:
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
        self, name: str, layer: BatchNorm, trace: MomentTrace, counter: _StepCounter, trained: Tensor | None
    ) -> None:
        self.name, self.layer, self.overwritten = name, layer, False
        self._trace, self._entries, self._counter = trace, trace.layers[name], counter
        self._buffers, self._attributes = layer._buffers, vars(layer)  # nn.Module's own way to set them is slow
        self._called = False
        self._loan: _Loan | None = None
        self._ended = False
        weight = layer.weight
        self._trained = trained if weight is None or not weight.requires_grad else weight
        self._trained_version: int | None = None
        self._keeps_moments = False  # whether own code of the layer has been seen to
        self.watch = _Watch(layer, self._entries, self._averages()[1])

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
        if _is_tracing():
            raise ValueError(
                f"record: layer {self.name!r} is traced or exported in train mode; do that before the block or after it"
            )
        held, own = self._averages()
        if self.watch.is_written(own):
            self.watch.take_up(own)
        self._called = True
        if count == 0:  # torch lets an empty batch pass and leaves the buffers as they are
            return
        self._counter.enter_layer(layer)
        slot = self._trace.slot(self._entries)
        _own_averages[id(slot[0])] = own
        self._loan = _Loan(slot, slot[0]._version, count, held, threading.get_ident())
        if own.momentum != self.watch.momentum:
            self.watch.momentum_varied = True
        self._buffers["running_mean"], self._buffers["running_var"] = slot
        self._attributes["momentum"] = 1.0

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

    def _check_moments(self, loan: _Loan, x: object) -> bool:
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

    def _averages(self) -> tuple[_Average, _Average]:
        """What the layer has now, and what it has when nothing is lent."""
        mean: Any = self._buffers["running_mean"]  # nn.Module's own way to get them is slow too
        held = _Average(mean, self._buffers["running_var"], self._attributes["momentum"])  # type: ignore[arg-type]
        return held, _own_averages.get(id(mean), held)

    def _give_back(self, loan: _Loan) -> None:
        self._loan = None
        del _own_averages[id(loan.slot[0])]
        self._buffers["running_mean"], self._buffers["running_var"], self._attributes["momentum"] = loan.taken

    def _append(self, count: int) -> None:
        entries = self._entries
        step, version = self._counter.begin_entry(), _version(self._trained)
        if version != self._trained_version and entries.steps and entries.steps[-1] == step:
            self._counter.warn_of_updates_within(step, self.name)
        self._trained_version = version
        entries.steps.append(step)
        entries.counts.append(count)


class _Watch:
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

    def __init__(self, layer: BatchNorm, entries: LayerTrace, own: _Average) -> None:
        self.momentum, self.momentum_varied, self.unrecorded = layer.momentum, False, 0
        self._buffers, self._entries = layer._buffers, entries
        self._updates = entries.updates
        self._look(own)

    def _look(self, own: _Average) -> None:
        """Take the buffers as they are for what the calls have left."""
        self._mean, self._var, self._batches = own.mean, own.var, self._buffers.get("num_batches_tracked")
        self._mean_version, self._var_version = _version(self._mean), _version(self._var)
        self._batches_version = _version(self._batches)
        self._shared = own.mean.data, own.var.data

    def share_values(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The same memory with versions of its own.

        So torch updates it too: that is no change to a backward pass that is still to come.
        """
        # Making them takes as long as the update; `.data = ...` may have given a buffer other memory.
        shared = self._shared
        if mean is self._mean and var is self._var and shared[0].is_set_to(mean) and shared[1].is_set_to(var):
            return shared
        return mean.data, var.data

    def is_written(self, own: _Average) -> bool:
        """Whether the buffers are others than at the last look, or have been written since."""
        return (
            own.mean is not self._mean
            or own.var is not self._var
            or self._buffers.get("num_batches_tracked") is not self._batches
            or self._entries.truncated
            or _version(self._mean) != self._mean_version
            or _version(self._var) != self._var_version
            or _version(self._batches) != self._batches_version
        )

    def count_updates(self) -> int:
        """How often the layer has counted a batch since the last look, as is right in a call."""
        before, batches, version = self._updates, self._batches, _version(self._batches)
        writes = version - self._batches_version
        if batches is not None and writes:
            # Usually one write adds one; reading the value waits for an accelerator. Compiled code writes twice.
            self._updates = before + 1 if writes == 1 else int(batches)
        self._batches_version = version
        return self._updates - before

    def take_up(self, own: _Average) -> None:
        """Begin again where the buffers are not what the recorded calls have left."""
        batches, entries = self._buffers.get("num_batches_tracked"), self._entries
        updates = 0 if batches is None else int(batches)
        # Counting adds 1 at a time, loading writes any number at once.
        if batches is self._batches and 0 < updates - self._updates <= _version(batches) - self._batches_version:
            self.unrecorded += updates - self._updates
        values = torch.stack(own[:2]).detach()
        expected = 0 if batches is None else entries.updates_now
        if updates != expected or not self._holds(values):
            entries.restart(values, updates)
        entries.truncated, self._updates = False, updates
        self._look(own)

    def is_overwritten(self, own: _Average) -> bool:
        """Whether the buffers hold something else than the average of what was recorded, as far as that is known."""
        return not self.momentum_varied and not self._holds(torch.stack(own[:2]))

    def _holds(self, values: Tensor) -> bool:
        """Whether these are the layer's own average of what is recorded, to rounding."""
        entries, momentum = self._entries, self.momentum
        if momentum is None and self._buffers.get("num_batches_tracked") is None:
            momentum = 0.0
        mean, var = average = entries.average(momentum)
        # Each update rounds, and is forgotten after 1/momentum others; each sum has a few roundings.
        memory = entries.updates_now + 1 if momentum is None else 1 / momentum if momentum else 1
        tolerance = 8 * torch.finfo(values.dtype).eps * memory
        scale = torch.stack((mean.abs() + var.abs().sqrt(), var.abs()))
        values = values.cpu().double()
        close = (values - average).abs() <= tolerance * scale
        return bool((close | (values == average) | (values.isnan() & average.isnan())).all())


def _is_tracing() -> bool:
    """Whether the operations that run now go into a graph of torch.jit.trace, torch.export or make_fx."""
    proxies = torch._C._get_dispatch_mode(_PROXY)
    return torch._C._get_tracing_state() is not None or proxies is not None or torch.compiler.is_exporting()


def _version(tensor: Tensor | None) -> int:
    """Grows with each write in place; inference tensors have none."""
    if tensor is None:
        return -1
    try:
        return tensor._version
    except RuntimeError:
        return -1
