"""The slow, obvious way, by torch's operations: whole forwards of all batches, again and again.

Each pass gives the moments of one layer more, the next in a forward that has none yet, while those before normalize by
what was measured; the last passes confirm all of them. No forward waits for another. A layer is known by the operation
that reads its averages, so that `layer.forward(x)` and `F.batch_norm(x, layer.running_mean, ...)`, which pass by the
hooks at which a walk stops, are measured too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import cast

from torch import Tensor

from bnlab.exact.task import CALLER, Task
from bnlab.model.borrow import measured
from bnlab.model.calls import NormCall, NormCallMode
from bnlab.model.layers import BatchNorm, list_instance_norms
from bnlab.model.reading import Pooled
from bnlab.statistics.moments import Moments, compare_moments
from bnlab.statistics.provenance import Check

SAME = 1e-4  # difference of moments that is rounding: of means in σ, of variances relative
_SETTLED = 1e-6  # layers that depend on themselves are measured again until the difference is this small
_PATIENCE = 3  # passes in which it is not halved, after which it will not get smaller


def find_read(task: Task, unseen: Collection[str]) -> list[str]:
    """List the layers that no batch has reached, and whose averages the first or the last batch's forward reads."""
    read: dict[str, None] = {}

    def look(name: str, x: Tensor) -> None:
        if name in unseen:
            read[name] = None

    if unseen and task.data:
        with measured(task.root), _operations(task, look):
            task.evaluate(task.data[0])
            task.evaluate(task.data[-1])
    return list(read)


def measure_by_operations(task: Task) -> tuple[dict[str, Moments], Check, int]:
    """Measure each layer by the operations that read its averages, until all batches confirm the result.

    Returns:
        The moments, the last comparison of all batches with them, and the number of passes over the batches. The check
        has failed where passes go on to differ, as of a model that never settles.
    """
    with measured(task.root):
        return _settle(task)


def _settle(task: Task) -> tuple[dict[str, Moments], Check, int]:
    found: dict[str, Moments] = {}
    passes = 0
    best = Check(False, None, math.inf)
    since_best = 0
    while True:
        now, has_more = _pass(task, found)
        passes += 1
        off = {name: max(compare_moments(found[name], now[name])) for name in found if name in now}
        worst = max(off, key=lambda name: off[name], default=None)
        largest = 0.0 if worst is None else off[worst]
        if not has_more:
            since_best = 0 if largest < best.off / 2 else since_best + 1
            if largest <= best.off:
                best = Check(largest <= SAME, None if largest <= SAME else worst, largest)
            if largest <= _SETTLED or since_best == _PATIENCE:
                return found if best.held else now, best, passes
        found = now


def _pass(task: Task, given: Mapping[str, Moments]) -> tuple[dict[str, Moments], bool]:
    """Run all batches under these statistics; return what was normalized, and whether a layer is new.

    Of the layers without statistics the first alone is read: what comes behind it does not count yet.
    """
    parts: dict[str, list[Pooled]] = {}
    new: str | None = None

    def look(name: str, x: Tensor) -> None:
        nonlocal new
        if name not in given:
            new = name if new is None else new
            if name != new:
                return
        parts.setdefault(name, []).append(task.reader.measure(x))

    def run_all() -> None:
        # What a pass leaves in the model, or has drawn, the next one finds: one after the other they are ordinary
        # evaluations, and a model that counts or draws gives another result.
        with _operations(task, look):
            # Into the buffers, because a forward may read them beside the operation, as quantization does.
            for name, moments in given.items():
                task.write(name, moments)
            task.run_all()

    task.ranks.run_together(run_all)
    # Every rank merges the same layers in the same order.
    names = dict.fromkeys(name for of_rank in task.ranks.gather([*parts]) for name in of_rank)
    pooled = {}
    for name in names:
        of_rank = task.reader.pool(parts[name], []) if name in parts else None
        pooled[name] = task.ranks.merge(of_rank)
    return task.fetch(pooled), any(task.ranks.gather(new is not None))


def _operations(task: Task, look: Callable[[str, Tensor], None]) -> NormCallMode:
    """Look at the operations on the task's layers; ValueError for one by averages that are no layer's of the model."""
    measured_layers = set(task.layers.values())
    layers = dict(task.layers)
    # All that has averages, not only what is measured: an operation of another one is no mistake.
    for number, module in enumerate(task.root.modules()):
        if module not in measured_layers and isinstance(getattr(module, "running_mean", None), Tensor):
            layers[f"another layer, {number}"] = cast(BatchNorm, module)
    # Torch computes an instance norm by a batch norm of copies of its averages, which nobody could name.
    has_instance_norms = bool(list_instance_norms(task.root))

    def note(call: NormCall) -> None:
        if call.name is None and call.mean is not None and not has_instance_norms:
            raise ValueError(
                f"{CALLER}: a forward normalizes by averages that are no layer's own; give torch's batch norm the "
                "buffers of a layer, with all channels, and give functional_call parameters only"
            )
        if call.name in task.layers and call.x.numel():
            look(str(call.name), call.x)

    return NormCallMode(layers, note)
