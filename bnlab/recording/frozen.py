"""Recording one pass over data with the weights as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from bnlab.model.batches import Forward, call, copy_batch, find_device, require_batches, require_forward
from bnlab.model.borrow import measured
from bnlab.model.layers import batch_norm_layers, warn_of_others
from bnlab.recording.block import record
from bnlab.recording.trace import MomentTrace

_CALLER = "record_frozen"


def record_frozen(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    training: bool = False,
) -> MomentTrace:
    """Record the batch moments of one pass over `batches` with the weights as they are; `model` comes back as it was.

    Batch-norm layers normalize with their batch's statistics; all other modules are in eval mode. A replay of
    `Cumulative` is then what torch's `update_bn` computes for a model without dropout. `update_bn` leaves dropout on:
    `training=True` does so too.

    Args:
        model: any module with batch-norm layers that keep running statistics.
        batches: each batch is a step.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        training: whether the other modules are in train mode too, dropout for example.

    Raises:
        TypeError, ValueError: as `record`; there are no batches, or a layer is given values that are not finite.

    >>> import torch
    >>> from bnlab import replay
    >>> from bnlab.estimators import Cumulative
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> trace = record_frozen(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    >>> replay(trace, Cumulative(), [2])[2]["0"].mean.item()
    4.0
    >>> model[0].running_mean.item()  # the model is as it was
    0.0
    """
    layers = batch_norm_layers(model, caller=_CALLER)
    require_batches(batches, _CALLER)
    require_forward(forward, _CALLER)
    device = find_device(model, None, _CALLER)
    warn_of_others(model, _CALLER)

    run_forward = call if forward is None else forward
    # The recording begins inside of the measurement, so that this measurement's forwards count as training.
    with measured(model, training=training), record(model) as trace:
        # `measured` has put the whole model into eval mode; batch norms alone are to use their batch.
        for layer in layers.values():
            layer.train()
        for batch in batches:
            # The forward gets a copy, because an in-place operation such as nn.ReLU(inplace=True) would change the
            # caller's batch.
            run_forward(model, copy_batch(batch, device))
            # There is no optimizer whose updates could be counted, so that each batch is a step, whatever `forward`
            # calls.
            trace.step()

    # An iterable may have no length, so that this is known only now.
    if not trace.last_step:
        raise ValueError(f"{_CALLER}: batches is empty; pass at least one batch")
    for name, entries in trace.layers.items():
        # This is checked once, at the end: on an accelerator each look waits for the device.
        if not entries.moments.isfinite().all():
            raise ValueError(f"{_CALLER}: layer {name!r} was given NaN or infinite values; look at data and weights")
        # Otherwise replays that go on from the buffers would weigh the batches before this pass as well.
        entries.updates = 0
    return trace
