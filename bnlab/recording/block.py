"""Recording a model inside a `with` block.

In the block a layer's forward writes the batch's moments into a place of the trace, and the layer's own average is
updated from there; see `recorders`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from numbers import Integral

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bnlab.arguments import check_number
from bnlab.layers import batch_norm_layers, join_names
from bnlab.recording.recorders import Lent, Recorder, count_batches, make_recorder
from bnlab.recording.steps import StepCounter
from bnlab.recording.trace import LayerTrace, MomentTrace, Shelf
from bnlab.statistics import read_buffers
from bnlab.warn import warn


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
        UserWarning: when the block ends. Buffers are not the average of what was recorded (replays are), a layer was
            left to its own forward because what it takes cannot be read, nothing was recorded, or several forwards are
            on one step, and no update was seen.
    """
    layers = batch_norm_layers(model, caller="record")
    check_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"record: optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer, or None")
    shelf = Shelf()
    entries = {
        name: LayerTrace(read_buffers(layer), count_batches(layer), layer.eps, shelf) for name, layer in layers.items()
    }
    trace = MomentTrace(entries, int(step))
    counter = StepCounter(trace, model, optimizer)
    recorders = {name: make_recorder(layer, entries[name], counter) for name, layer in layers.items()}
    with contextlib.ExitStack() as undo:
        undo.callback(register_optimizer_step_post_hook(torch.compiler.disable(counter.end_update)).remove)
        undo.callback(model.register_forward_pre_hook(Lent(counter.begin_forward, _do_nothing)).remove)
        for recorder in recorders.values():
            recorder.attach(undo)
        trace.end_step = counter.end_step
        undo.callback(setattr, trace, "end_step", None)
        yield trace
    for message in _find_faults(model, trace, counter, recorders):
        warn(f"record: {message}", UserWarning)


def _find_faults(
    model: nn.Module, trace: MomentTrace, counter: StepCounter, recorders: Mapping[str, Recorder]
) -> Iterator[str]:
    """What is to be said when the block has ended."""
    lengths = [len(layer) for layer in trace.layers.values()]
    if not counter.has_counted and max(lengths) > 1:
        yield (
            "no update by an optimizer was seen, nor a forward of the model as a whole: all is on one step; call "
            "trace.step() after each update"
        )
    left = [name for name, recorder in recorders.items() if recorder.is_left]
    if left:
        yield (
            f"{join_names(left)} were left to their own forward, which takes something else than an input [N, C, ...] "
            "with all of their channels; nothing more was recorded of them"
        )
    elif (counter.has_counted or counter.has_seen_forward) and not any(lengths):
        yield "nothing was recorded: no batch-norm layer was called in train mode"

    now = dict(model.named_modules())
    unlike = [
        name
        for name, recorder in recorders.items()
        if not recorder.is_left and (now.get(name) is not recorder.layer or not recorder.verify())
    ]
    if unlike:
        yield (
            f"the running buffers of {join_names(unlike)} are not the average of what was recorded: they were written "
            "(load_state_dict, DistributedDataParallel), the layers replaced, or trained past their recorded forward "
            "(call torch.compile inside of the block)"
        )


def _do_nothing(*_: object) -> None:
    """What copies of a recorded model have in place of its hook."""
