"""Recording a model inside a `with` block."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from bnlab.arguments import check_number
from bnlab.borrowing import hold_the_same
from bnlab.layer_trace import LayerTrace
from bnlab.layers import (
    BatchNorm,
    batch_norm_layers,
    find_lookalikes,
    get_running_buffers,
    is_compiled,
    join_names,
)
from bnlab.loans import check_not_lent, is_lent
from bnlab.nn.self_tuned import SelfTuned
from bnlab.recording.membership import Membership
from bnlab.recording.recorder import Recorder, make_hook
from bnlab.recording.self_tuned import SelfTunedRecorder
from bnlab.recording.steps import StepCounter, is_within_another_step
from bnlab.trace import MomentTrace


@contextlib.contextmanager
def record(model: nn.Module, *, step: int = 0, optimizer: torch.optim.Optimizer | None = None) -> Iterator[MomentTrace]:
    """Record the moments of every batch that `model` is trained on inside the block.

    Parameters, outputs and `num_batches_tracked` are bit for bit those of training without it (to rounding, where
    training reads running buffers, as quantization-aware convolutions do); the running buffers are the model's own EMA
    to float32 rounding, at any moment at which code outside the layer can look. (After a KeyboardInterrupt within a
    layer that is so for bnlab and for the model's `state_dict` and `load_state_dict`; all else, as a deep copy or
    `layer.running_mean`, sees scratch values until the next call or one of these.) Layers in eval mode are not
    recorded, nor what runs while the model is borrowed (by `population_statistics`, say); a call that raises before the
    layer has taken its statistics leaves no entry. Meanwhile the model's `state_dict()` can be saved, the module itself
    cannot (hooks are not pickled), nor, also later, a deep copy that was made meanwhile; and its precision must stay.
    `torch.compile` belongs inside of the block, where each recorded layer interrupts the graph (`fullgraph=True` allows
    no such thing). Checkpointed parts that are compiled then average each batch twice, as they do where nothing is
    compiled.

    A subclass with a `forward` of its own is recorded if what it averages by its momentum are the moments of its input,
    or nothing; so is a layer with hooks that came later than the block, which may change its input and its momentum.
    That is seen from the buffers and costs a second pass over the layer's input. Of torch's SyncBatchNorm the moments
    are those of all processes, the counts those of this one.

    A step is, in this order of preference,

    - an update: a call of `trace.step()`, or of `optimizer.step()` where the optimizer is given. All forwards since the
      last one belong to it, as with accumulated gradients, or with several networks in one model;
    - a train-mode forward of the model;
    - where only parts of the model are called, as of a container of several networks: such a forward of a part that
      has been called in this step already. (Of two parts that are called in turn, both are on the same step.)

    Where something writes a layer's running buffers (`load_state_dict`, `reset_running_stats`, `write_to`), replays
    begin again from what has been written: from the step at which it is seen, before the next step's forward or at the
    end of an update. What has been put back before the next call counts as not written; after `trace.truncate` that
    takes `num_batches_tracked` too.

    Args:
        step: the step at which the model is when recording begins.
        optimizer: whose updates count as steps.

    Raises:
        TypeError: not a module, `step` is no integer, or `optimizer` no torch optimizer.
        ValueError: no batch-norm layer with running statistics, one that has no mean and variance for each channel or
            no momentum as a plain attribute, a model that has been compiled or that another thread is measuring, an
            optimizer without hooks, or a negative step; inside of the block, a layer that takes its statistics several
            times in a call, averages something else than its input's moments (those of a part of it, say) or not by its
            momentum, whose buffers are written or replaced within a call, that is called by two threads at once, or is
            traced or exported in train mode.

    Warns:
        UserWarning: something has trained a layer past its hooks (code that was compiled before the block, a direct
            `layer.forward`), has written its buffers in a way that leaves no trace, has taken its hooks away, has put
            another layer into the model, or has taken one out of it for some of the training; layers have averaged into
            other running buffers (of `functional_call`) than they have at the end, or in between; the weights have
            changed within a step or, where updates are counted, within some of the steps; a layer had momentum 0 or
            None (as `update_bn` sets it) in some of its calls, which are entries all the same, or None and has counted
            batches that are no entries; layers average variances
            with ddof 0, which some estimators take for unbiased; or modules that are no batch norm of torch's, and are
            not recorded, have averaged running statistics of their own.
    """
    layers = batch_norm_layers(model, caller="record")
    for name, layer in layers.items():
        _check_recordable(name, layer)
    check_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"record: optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer, or None")
    if optimizer is not None and not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise ValueError(
            f"record: optimizer is a {type(optimizer).__name__} that keeps no hooks (it has not called "
            "torch.optim.Optimizer.__init__); pass the optimizer inside of it, or call trace.step() after each update"
        )
    if any(map(is_compiled, model.modules())):
        raise ValueError(
            "record: the model is compiled, and its graphs may not call hooks; record the uncompiled model, and call "
            "torch.compile inside of the block"
        )
    check_not_lent(model.modules())
    recording = Recording(model, layers, int(step))
    with recording.attached(optimizer):
        yield recording.trace
    recording.steps.warn_of_uncounted_updates()
    recording.warn_of_the_unrecorded()
    recording.warn_of_exchanged_buffers()
    recording.warn_of_other_momenta()
    recording.warn_of_biased_variances()
    recording.membership.warn_of_new_layers()
    recording.membership.warn_of_missed_layers()
    recording.warn_of_lookalikes()


class Recording:
    """One block in which a model is recorded.

    Args:
        model: whose training it is.
        layers: those that are recorded, by name.
        step: the step at which the block begins.

    Attributes:
        trace: what is recorded.
        steps: which step it is.
        membership: which layers have come into the model, or have been out of it meanwhile.
        recorders: one for each layer.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, BatchNorm], step: int) -> None:
        self.trace = MomentTrace({name: _begin_trace(layer, step) for name, layer in layers.items()}, first_step=step)
        self.steps = StepCounter(self.trace, model, layers.values(), self.take_up_writes)
        self._counts_optimizer = False
        trained = next((p for p in model.parameters() if p.requires_grad), None)
        self.membership = Membership(self.trace, model, layers)
        self._model, self._statistics_before = model, _copy_statistics(model)
        self.recorders = [
            _choose_recorder(layer)(name, layer, self.trace, self.steps, trained) for name, layer in layers.items()
        ]

    @contextlib.contextmanager
    def attached(self, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
        """Record what the block trains."""
        with contextlib.ExitStack() as undo:
            self.trace.recording = self
            undo.callback(setattr, self.trace, "recording", None)
            if optimizer is not None:
                self._counts_optimizer = True
                self.steps.count_updates_only()
                optimizer._patch_step_function()  # type: ignore[no-untyped-call]  # wrappers have not: no hook would run
                count_update = torch.compiler.disable(lambda stepped, *_: self.end_update(stepped))
                undo.callback(optimizer.register_step_post_hook(count_update).remove)
            undo.callback(register_module_module_registration_hook(self.membership.register).remove)
            for module in self.steps.modules:
                undo.callback(module.register_forward_pre_hook(make_hook(self.steps.enter)).remove)
                undo.callback(module.register_forward_hook(make_hook(self.steps.leave), always_call=True).remove)
            for recorder in self.recorders:
                undo.enter_context(recorder.attached())
            yield

    def end_update(self, optimizer: torch.optim.Optimizer) -> None:
        if not is_within_another_step(optimizer):
            self.steps.end_step()

    def end_step(self) -> None:
        if self._counts_optimizer:
            raise ValueError(
                "MomentTrace.step: record counts the updates of its optimizer, and would count this one twice; call it "
                "without optimizer= only"
            )
        self.steps.end_step()

    def truncate(self, step: int) -> None:
        self.steps.truncate(step)

    def take_up_writes(self) -> None:
        for recorder in self.recorders:
            recorder.take_up_writes()

    def disregard_exchanges(self) -> None:
        """Say nothing of other running buffers that layers have had: the entries are the same."""
        for recorder in self.recorders:
            recorder.exchanged = recorder.alternates = False

    def warn_of_the_unrecorded(self) -> None:
        """Say which layers were trained or written past their recorders."""
        missed = {recorder.name: recorder.watch.unrecorded for recorder in self.recorders if recorder.watch.unrecorded}
        if missed:
            most = max(missed.values())
            warnings.warn(
                f"record: {join_names(missed)} were trained on {most} batch{'es' * (most > 1)} past their hooks, which "
                "are not in the trace; code that was compiled before the block does that, also of another model of the "
                "class (torch._dynamo.reset() forgets it), or a direct call of layer.forward; arithmetic that averages "
                "another model into buffers and counter (a teacher's, say) looks the same: replays begin again there",
                stacklevel=4,
            )
        if unhooked := [recorder.name for recorder in self.recorders if recorder.unhooked]:
            warnings.warn(
                f"record: something has taken the hooks of {join_names(unhooked)} away in the block, and what was "
                "trained after that is not in the trace; a block of bnlab.using that began before this one and ended "
                "inside of it (in a generator, say) does that, or one that this one ended in",
                stacklevel=4,
            )
        overwritten = [r.name for r in self.recorders if r.overwritten and not r.watch.unrecorded]
        if overwritten:
            warnings.warn(
                f"record: the running buffers of {join_names(overwritten)} are not the average of what was recorded, "
                "or were not at some time: something has written them, through .data or by a functional batch norm, "
                "say, or DistributedDataParallel has (unless forward_sync_buffers=False, in earlier torch "
                "broadcast_buffers=False), or load_state_dict has brought self-tuned layers back to an earlier batch "
                "(call trace.truncate after it); what is replayed is not what they hold",
                stacklevel=4,
            )

    def warn_of_exchanged_buffers(self) -> None:
        """Say which layers have averaged into buffers that are not the model's."""
        if alternating := [recorder.name for recorder in self.recorders if recorder.alternates]:
            warnings.warn(
                f"record: {join_names(alternating)} were called with other running buffers (a teacher's, by "
                "torch.func.functional_call?) and then with the model's own again; all calls are in the trace, and "
                "replays may give the others at the end of a step: call the other model in eval mode, or a deep copy",
                stacklevel=4,
            )
        exchanged = [recorder.name for recorder in self.recorders if recorder.exchanged]
        if exchanged:
            warnings.warn(
                f"record: {join_names(exchanged)} were trained with other running buffers than the model's own "
                "(torch.func.functional_call?), which it has again now: at the last step replays give these; load the "
                "others into the model before the block ends",
                stacklevel=4,
            )

    def warn_of_other_momenta(self) -> None:
        """Say which layers have left some of their entries out of their average, or have averaged them all alike."""
        left_out = {recorder.name: recorder.left_out for recorder in self.recorders}
        averaged = {recorder.name: recorder.cumulative for recorder in self.recorders}
        tracking = "for calls that are to be left out set track_running_stats=False instead"
        update = "torch.optim.swa_utils.update_bn does that: give it a deep copy of the model, or call it outside of"
        for momentum, calls, consequence in (
            (0, left_out, f"average what the layers have not; {tracking}"),
            (None, averaged, f"average all in one way; {update} the block"),
        ):
            some = {name: count for name, count in calls.items() if 0 < count < len(self.trace.layers[name])}
            if some:
                most = max(some.values())
                warnings.warn(
                    f"record: {join_names(some)} had momentum {momentum} in {most} call{'s' * (most > 1)} and another "
                    f"one in others; all are in the trace, and replays {consequence}",
                    stacklevel=4,
                )
        if miscounted := [recorder.name for recorder in self.recorders if recorder.miscounted]:
            warnings.warn(
                f"record: {join_names(miscounted)}, with momentum None, have counted batches that are no entries "
                "(empty ones?) and weigh all others by that count; replays average entries alike: they give something "
                "else than the layers hold",
                stacklevel=4,
            )

    def warn_of_lookalikes(self) -> None:
        """Say which modules that are no batch norm of torch's have had their running statistics written."""
        now, before = _copy_statistics(self._model), self._statistics_before
        if changed := [name for name, own in now.items() if not _hold_the_same(own, before.get(name, []))]:
            warnings.warn(
                f"record: running statistics of {join_names(changed)}, no subclass of torch's batch norm, have changed "
                "in the block, which is not in the trace",
                stacklevel=4,
            )

    def warn_of_biased_variances(self) -> None:
        """Say which layers' entries have other variances than estimators that pool or correct them take them for."""
        if biased := [recorder.name for recorder in self.recorders if recorder.is_biased]:
            warnings.warn(
                f"record: {join_names(biased)} average variances with ddof 0, which are in the trace as they are; "
                "estimators that take them for unbiased (pooled ones, BiasedEMA, DeviationEMA) make them too small, by "
                "up to 1/n for batches of n values per channel",
                stacklevel=4,
            )


def _check_recordable(name: str, layer: BatchNorm) -> None:
    """ValueError unless it averages a mean and a variance for each channel, by a momentum that is its own attribute."""
    shapes = [tuple(buffer.shape) for buffer in get_running_buffers(layer)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"record: layer {name!r} has a running mean of shape {shapes[0]} and a running variance of {shapes[1]}; "
            "only layers with a mean and a variance for each channel can be recorded"
        )
    if "momentum" not in vars(layer):
        raise ValueError(
            f"record: the momentum of layer {name!r} is a buffer, a property or one of its class, which cannot be set "
            "for a call; make it a plain attribute of the layer"
        )


def _choose_recorder(layer: BatchNorm) -> type[Recorder]:
    # A layer that is lent runs torch's forward, and keeps nothing itself.
    return SelfTunedRecorder if isinstance(layer, SelfTuned) and not is_lent(layer) else Recorder


def _copy_statistics(model: nn.Module) -> dict[str, list[Tensor]]:
    """Those of its lookalikes."""
    lookalikes = find_lookalikes(model).items()
    return {name: [t.detach().to("cpu", copy=True) for t in kept if not t.is_meta] for name, (kept, _) in lookalikes}


def _hold_the_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether they do, as far as tensors of another type can be compared."""
    if [tensor.shape for tensor in some] != [tensor.shape for tensor in others]:
        return False
    return all(a.dtype != b.dtype or hold_the_same(a, b) for a, b in zip(some, others, strict=True))


def _begin_trace(layer: BatchNorm, step: int) -> LayerTrace:
    updates = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
    start = torch.stack(get_running_buffers(layer)).detach()
    return LayerTrace(start, updates, layer.eps, first_step=step)
