"""Recording one pass over data with the weights as they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bnlab.arguments import check_batches, check_forward, find_device
from bnlab.batches import Forward, call, copy_batch
from bnlab.borrowing import KeptTensors, borrowed, gradients_set_aside, keep_state, set_buffers_aside
from bnlab.layers import batch_norm_layers, join_names, set_train_mode
from bnlab.loans import refuse_other_threads
from bnlab.module_state import ModuleState, list_forward_hooks
from bnlab.recording.block import Recording, record
from bnlab.running_use import RunningUse
from bnlab.trace import MomentTrace


def record_frozen(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, training: bool = False
) -> MomentTrace:
    """The batch moments of one pass over `batches` with the weights as they are; `model` comes back as it was.

    Batch-norm layers normalize with their batch's statistics, all else runs as for inference. Every batch begins with
    the model as it is: weights, buffers and attributes that a forward changes are put back after it. Replaying running
    estimators on this trace gives the estimators of frozen weights: `Cumulative` what torch's `update_bn` computes,
    which leaves dropout on as `training=True` does.

    Args:
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        training: all else runs as in training too, dropout and the like.

    Raises:
        as `record`; ValueError if there are no batches, no layer goes into train mode, or the model is called where
            the next batch is made.

    Warns:
        RuntimeWarning: layers normalize with their running statistics as ever, because their class overrides `train`,
            the forward puts them into eval mode, or their own forward takes them: the trace leaves them out.
    """
    layers, hooks = batch_norm_layers(model, caller="record_frozen"), list_forward_hooks(model)
    check_batches(batches, "record_frozen")
    check_forward(forward, "record_frozen")
    device = find_device(model, None, "record_frozen")
    with borrowed(model), gradients_set_aside(model), torch.no_grad():
        refuse_other_threads(model)
        for layer in layers.values():
            set_buffers_aside(layer)  # a backward pass that is still to come may have saved the model's own
        state, weights = ModuleState(model, hooks), KeptTensors(model.parameters())
        with record(model) as trace, weights.restored(unseen=True):
            model.train(training)
            frozen = set_train_mode(layers)
            use = RunningUse({name: layer for name, layer in layers.items() if name not in frozen}, "record_frozen")
            if len(frozen) == len(layers):
                raise ValueError(
                    f"record_frozen: {join_names(frozen)} cannot be put into train mode (train is overridden), so that "
                    "no layer has batch statistics; pass a model with layers that take train mode"
                )
            recorded = 0  # calls
            starts = {name: entries.start for name, entries in trace.layers.items()}
            for batch in batches:
                _check_recorded(trace, recorded)
                state.accept()
                kept = keep_state(model)  # as the caller's batches, which may write into it, have left it
                with use.watched(), weights.restored(unseen=True), kept.restored(unseen=True), state.undone():
                    (forward or call)(model, copy_batch(batch, device))
                trace.step()
                recorded = _count_calls(trace)
            _check_recorded(trace, recorded)
            assert isinstance(trace.recording, Recording)
            for recorder in trace.recording.recorders:
                recorder.exchanged = False  # which buffers a forward gives its layers is all the same to this average
    if trace.last_step == trace.first_step:
        raise ValueError("record_frozen: batches is empty; pass at least one batch")
    if left_out := [*dict.fromkeys([*frozen, *use.found])]:
        told = (
            f"record_frozen: the running statistics of {join_names(left_out)} are used as ever: these layers cannot be "
            "put into train mode (train is overridden), the forward changes to eval mode, or a forward of their own "
            "takes them"
        )
        if len(left_out) == len(layers):
            raise ValueError(f"{told}; pass a model with layers that have batch statistics")
        trace.layers = {name: entries for name, entries in trace.layers.items() if name not in left_out}
        warnings.warn(
            f"{told}; the trace leaves them out",
            RuntimeWarning,
            stacklevel=2,
        )
    for name, entries in trace.layers.items():
        if not entries.moments.isfinite().all():
            raise ValueError(
                f"record_frozen: the input of layer {name!r} has NaN or infinite values; look at data and weights"
            )
        # An average of this pass alone: what the buffers had seen before is not its start, nor what a forward writes.
        entries.start, entries.updates, entries.restarts = starts[name], 0, []
    return trace


def _count_calls(trace: MomentTrace) -> int:
    return sum(map(len, trace.layers.values()))


def _check_recorded(trace: MomentTrace, calls: int) -> None:
    """ValueError if there are others than those of the forwards."""
    if _count_calls(trace) != calls:
        raise ValueError(
            "record_frozen: the model is called while the next batch is made, where it has batch statistics; make all "
            "batches before, as a list"
        )
