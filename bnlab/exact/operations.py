"""The slow, obvious way, by torch's operations: whole forwards of all batches, again and again.

Each pass gives the moments of one layer more, the next in a forward that has none yet, while those before normalize by
what was measured; the last passes confirm all of them. No forward waits for another. A layer is known by the operation
that reads its averages, so that `layer.forward(x)` and `F.batch_norm(x, layer.running_mean, ...)`, which pass by the
hooks at which a walk stops, are measured too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnlab.exact.fixed_point import settle
from bnlab.exact.task import CALLER, Task
from bnlab.model.borrow import measured
from bnlab.model.calls import NormCall, NormCallMode
from bnlab.model.layers import get_running_buffers, has_own_forward
from bnlab.model.reading import DeviceMoments
from bnlab.statistics.moments import Moments
from bnlab.statistics.provenance import Check


def find_read(task: Task, unseen: Collection[str], given: Mapping[str, Moments]) -> list[str]:
    """List the layers that no batch has reached, and whose averages a forward reads under these statistics."""
    read: dict[str, None] = {}

    def look(name: str, x: Tensor) -> None:
        if name in unseen:
            read[name] = None

    def run() -> None:
        if unseen and task.data:
            with measured(task.root):
                # Which way a forward takes may depend on what was normalized.
                for name, moments in given.items():
                    task.write(name, moments)
                _evaluate(task, task.data, look)

    task.ranks.run_together(run)
    return [*dict.fromkeys(name for of_rank in task.ranks.gather([*read]) for name in of_rank)]


def measure_by_operations(task: Task) -> tuple[dict[str, Moments], Check, int]:
    """Measure each layer by the operations that read its averages, until all batches confirm the result.

    Returns:
        The moments, the last comparison of all batches with them, and the number of passes over the batches. The check
        has failed where passes go on to differ, as of a model that never settles.
    """
    with measured(task.root):
        return settle(partial(_pass, task))


def _pass(task: Task, given: Mapping[str, Moments]) -> dict[str, Moments]:
    """Run all batches under these statistics; return what their layers normalized, and one layer more.

    Of the layers without statistics the first is read. What comes behind one in a forward does not count yet.
    """
    parts: dict[str, list[DeviceMoments]] = {}
    new: str | None = None
    counts = True  # what this forward still normalizes

    def look(name: str, x: Tensor) -> None:
        nonlocal new, counts
        if not counts:
            return
        if name not in given:
            counts = False
            new = name if new is None else new
        if name in given or name == new:
            parts.setdefault(name, []).append(task.reader.measure(x))

    def begin() -> None:
        nonlocal counts
        counts = True

    def run_all() -> None:
        # Into the buffers, because a forward may read them beside the operation, as quantization does.
        for name, moments in given.items():
            task.write(name, moments)
        # Nothing is put back between passes. They are ordinary evaluations one after the other, so that the check sees
        # a model that counts its calls or draws random numbers: no two of its passes are alike.
        _evaluate(task, task.data, look, begin)

    task.ranks.run_together(run_all)
    # Every rank merges the same layers in the same order.
    names = dict.fromkeys(name for of_rank in task.ranks.gather([*parts]) for name in of_rank)
    pooled = {}
    for name in names:
        of_rank = task.reader.pool(parts[name]) if name in parts else None
        pooled[name] = task.ranks.merge(of_rank)
    return task.fetch(pooled)


def _evaluate(
    task: Task, batches: Iterable[Any], look: Callable[[str, Tensor], None], begin: Callable[[], None] = lambda: None
) -> None:
    """Run batches, and look at what is given to each operation on one of the task's layers; `begin` before each batch.

    ValueError for a layer that is called without an operation on its averages, and for one on some of its channels.
    """
    seen: dict[str, None] = {}
    called: dict[str, None] = {}
    storages = {get_running_buffers(layer)[0].untyped_storage().data_ptr() for layer in task.layers.values()}

    def note(call: NormCall) -> None:
        if call.name is None and call.mean is not None and call.mean.untyped_storage().data_ptr() in storages:
            raise ValueError(
                f"{CALLER}: a forward normalizes by a part of a layer's averages, which is no layer's own; give "
                "torch's batch norm all channels"
            )
        if call.name is None:
            return
        seen[call.name] = None
        if call.uses_batch and not has_own_forward(task.layers[call.name]):
            raise ValueError(
                f"{CALLER}: the forward changes the mode of layer {call.name!r}, by train() or eval(); leave that out: "
                "a layer in train mode normalizes by its batch"
            )
        if call.x.numel():
            look(call.name, call.x)

    with contextlib.ExitStack() as stack:
        for name, layer in task.layers.items():
            if isinstance(layer, torch.jit.ScriptModule):  # which takes no hooks
                continue
            # Only whether it has rows: a layer for a kind of node that a batch has none of runs no operation.
            stack.callback(layer.register_forward_pre_hook(partial(_note_call, called, name)).remove)
        stack.enter_context(NormCallMode(task.layers, note))
        for batch in batches:
            begin()
            seen.clear()
            called.clear()
            task.evaluate(batch)
            missing = [name for name in called if name not in seen]
            if missing:
                raise ValueError(
                    f"{CALLER}: layer {missing[0]!r} is called, and no operation on its averages is seen: it runs in "
                    "another thread, or the forward puts other buffers in their place; give functional_call parameters "
                    "only"
                )


def _note_call(called: dict[str, None], name: str, layer: Any, args: Any) -> None:
    tensors = [value for value in args if isinstance(value, Tensor)]
    if any(value.numel() for value in tensors) and not has_own_forward(layer):
        called[name] = None
