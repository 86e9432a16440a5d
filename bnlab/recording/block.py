"""Recording a model inside a `with` block.

In the block a layer's forward writes the batch's moments into a place of the trace. From there they are averaged into
the layer's buffers; see `recorders`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from numbers import Integral

from torch import nn

from bnlab.model.arguments import require_number
from bnlab.model.layers import batch_norm_layers, join_names
from bnlab.model.warn import warn
from bnlab.recording.recorders import DOES_NOTHING, Recorder, RecordingCall, count_batches, make_recorder
from bnlab.recording.steps import StepCounter
from bnlab.recording.trace import LayerTrace, MomentTrace
from bnlab.statistics.network import read_buffers


@contextlib.contextmanager
def record(
    model: nn.Module,
    *,
    step: int = 0,
) -> Iterator[MomentTrace]:
    """Record the moments of every batch that `model` is trained on inside the block, one entry for each layer call.

    Layers in eval mode, and calls of the model by measurements, are not recorded. Training is the same bit for bit, the
    running buffers to float32 rounding. What a layer with a forward of its own gives to torch's batch norm is read a
    second time. Call `torch.compile` inside of the block.

    A step ends with an update of the model's parameters by a torch optimizer, or with a call of `trace.step()`. All
    train-mode forwards since the update before belong to it; updates without a forward between them are one. Until
    there is an update, each forward of the model is a step.

    A call takes eight bytes of main memory a channel: a ResNet-50 takes 2 GB in 10,000 steps. Record a long training in
    several blocks, save each, and put them together by `MomentTrace.join`.

    Activation checkpointing leaves two entries for a call, as torch updates the buffers twice; with selective policies
    (`context_fn`) it writes wrong values into buffers and trace. `nn.DataParallel` on several devices is not supported.

    Args:
        model: any module with batch-norm layers that keep running statistics.
        step: the step that the model has reached when recording begins.

    Raises:
        TypeError: `model` is no module.
        ValueError: `step` is not a number from 0 on, or no batch-norm layer has running statistics.

    Warns:
        UserWarning: when the block ends. The buffers are not the average of what was recorded (a replay is); a layer
            was left to its own forward, because its input cannot be read; nothing was recorded; several forwards are on
            one step, because no update was seen.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> with record(model) as trace:
    ...     output = model(torch.tensor([[1.0], [3.0]]))
    >>> trace
    MomentTrace(1 layers, steps 0 to 1)
    >>> trace.layers["0"].moments.squeeze().tolist()  # mean and unbiased variance of the batch
    [2.0, 2.0]
    """
    layers = batch_norm_layers(model, caller="record")
    require_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)

    entries = {name: LayerTrace(read_buffers(layer), count_batches(layer), layer.eps) for name, layer in layers.items()}
    trace = MomentTrace(entries, int(step))
    counter = StepCounter(trace, model, layers.values())
    recorders = {name: make_recorder(layer, entries[name], counter) for name, layer in layers.items()}

    with contextlib.ExitStack() as undo:
        counter.observer.attach(undo)
        # A copy or a pickle of the model outlives the block; in it the hook becomes a function that does nothing.
        undo.callback(model.register_forward_pre_hook(RecordingCall(counter.begin_forward, DOES_NOTHING)).remove)
        for recorder in recorders.values():
            recorder.attach(undo)
        # Outside of the block `trace.step()` raises an error, where it would otherwise do nothing without a word.
        trace.on_step = counter.end_step
        undo.callback(setattr, trace, "on_step", None)
        yield trace

    _read_ends(model, recorders)
    for message in _describe_faults(trace, counter, recorders):
        warn(f"record: {message}", UserWarning)


def _read_ends(model: nn.Module, recorders: Mapping[str, Recorder]) -> None:
    """Read what the buffers of the recorded layers hold at the end; nothing of layers that were replaced."""
    modules = dict(model.named_modules())
    for name, recorder in recorders.items():
        # If a layer was left to its own forward, or replaced, its buffers say nothing about these entries.
        if not recorder.is_left and modules.get(name) is recorder.layer:
            recorder.entries.end = read_buffers(recorder.layer)


def _describe_faults(trace: MomentTrace, counter: StepCounter, recorders: Mapping[str, Recorder]) -> Iterator[str]:
    """Describe what the user has to know of the recording that has ended."""
    lengths = [len(layer) for layer in trace.layers.values()]
    if not counter.has_counted and max(lengths) > 1:
        # A single forward is on the right step in any case, and needs no warning.
        yield (
            "no update by an optimizer was seen, nor a forward of the model as a whole: all is on one step; call "
            "trace.step() after each update"
        )

    has_run = counter.has_counted or counter.has_seen_forward
    left = [name for name, recorder in recorders.items() if recorder.is_left]
    if left:
        yield (
            f"{join_names(left)} were left to their own forward, which takes something else than an input [N, C, ...] "
            "with all of their channels; nothing more was recorded of them"
        )
    # An empty block is no mistake, but a block with updates or forwards and without entries is one, unless layers that
    # were left to their own forward explain it.
    elif has_run and not any(lengths):
        yield "nothing was recorded: no batch-norm layer was called in train mode"

    unlike = [
        name for name, recorder in recorders.items() if not recorder.is_left and not recorder.agrees_with_entries()
    ]
    if unlike:
        yield (
            f"the running buffers of {join_names(unlike)} are not the average of what was recorded: they were written "
            "(load_state_dict, DistributedDataParallel), the layers replaced, trained past their recorded forward "
            "(call torch.compile inside of the block), or they average by another momentum than theirs, or by "
            "arithmetic of their own"
        )
