"""Set up what the doctor measures, and measure it: the caller's model, on batches that are read once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.doctor.evidence.labels import Labels, is_numbered, read_labels
from bnlab.exact.population import population_statistics
from bnlab.exact.source import Source
from bnlab.exact.task import Ranks, Task, watched
from bnlab.model.batches import Forward, call, count_images, find_device, map_batch
from bnlab.model.borrow import keep_random_state, measured
from bnlab.model.layers import BatchNorm, Extract, Inputs, batch_norm_layers, get_running_buffers
from bnlab.model.reading import choose_reader
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics

CALLER = "diagnose"


def set_up(
    model: nn.Module,
    layers: Mapping[str, BatchNorm],
    forward: Forward | None,
    inputs: Mapping[Any, Extract] | None,
    progress: bool | None,
    caller: str = CALLER,
    group: Any = None,
    labels: Labels | None = None,
) -> Task:
    """Set up a task without batches, on the model's own device; by a group's processes together, where one is given.

    A model whose averages have overflown float16, as its activations would too, is measured in a float32 copy.
    """
    run = _name_call(forward)
    if any(has_overflown(layer) for layer in layers.values()):
        model, run = _widen(model, run)
        layers = batch_norm_layers(model, caller=caller)
    device = find_device(model, None, caller)
    reader = choose_reader(device, True)  # the doctor merges no moments of several processes
    return Task(
        model,
        layers,
        run,
        device,
        [],
        Ranks(group, caller),
        Inputs(layers, inputs, caller),
        reader,
        caller=caller,
        progress=progress,
        labels=labels,
    )


def read_batches(task: Task, batches: Iterable[Any], max_images: int | None, name: str = "batches") -> Task:
    """Read this process's batches once and keep them, until they are so many images; return the task on them.

    Args:
        task: a task without batches, or on others.
        batches: any iterable.
        max_images: after how many images reading stops; None: all are read.
        name: of the caller's argument.

    Raises:
        ValueError: there are none, one is empty, or they take more than half of the free memory; of any process.
    """
    data: list[Any] = []

    def read() -> None:
        # A loader that shuffles draws from the global generators.
        with keep_random_state(task.model):
            Source(batches, count_images, task.caller).read(data, max_images)
        if not data:
            advice = "pass at least one batch (an iterator is used up once read)"
            raise ValueError(f"{task.caller}: {name} is empty; {advice}")

    task.ranks.run_together(read)
    return task.on(data)


def measure(task: Task, data: Iterable[Any] | None = None, **options: Any) -> Statistics:
    """Measure exact statistics of a task's batches, or of others, with further options of `population_statistics`."""
    return population_statistics(
        task.model,
        task.data if data is None else data,
        forward=task.forward,
        inputs=task.inputs.given,
        progress=task.progress,
        group=task.ranks.group,
        **options,
    )


def measure_under(task: Task, given: Statistics) -> Statistics:
    """Measure what layers are given under given statistics: one pass, however often each of them is called."""
    parts: dict[str, list[Any]] = {}

    def take(name: str, x: Tensor) -> None:
        parts.setdefault(name, []).append(task.reader.measure(x))

    with measured(task.root):
        # Written into the layers' own buffers: `using` would put others in their place, which `watched` refuses.
        for name in given:
            task.write(name, given[name])
        with watched(task, task.layers, take):
            task.run_all()

    pooled = {}
    eps = {}
    for name, calls in parts.items():
        pooled[name] = task.reader.pool(calls)
        eps[name] = task.layers[name].eps
    moments: dict[str, Moments] = task.fetch(pooled)
    return Statistics(moments, eps)


def find_labels(task: Task, batch: Any) -> Tensor | None:
    """Find the labels of a batch, in the part that was chosen for tuples of so many parts.

    Whole numbers [N, 1], as some data sets have them, are returned as [N].
    """
    labels = _find_labels_as_given(task, batch)
    if labels is None or labels.is_floating_point() or labels.dim() != 2 or labels.shape[1] != 1:
        return labels
    return labels[:, 0]


def _find_labels_as_given(task: Task, batch: Any) -> Tensor | None:
    if task.label_place is not None and isinstance(batch, (tuple, list)):
        number, parts = task.label_place
        # Other batches, such as those of training, may have another layout, with labels in the usual part.
        if len(batch) == parts and isinstance(batch[number], Tensor):
            return batch[number]
    return read_labels(batch, task.labels, task.caller)


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run the default forward; of (index, images, labels) with the images."""
    return model(batch[1]) if is_numbered(batch) else call(model, batch)


def _name_call(forward: Forward | None) -> Forward:
    """Make a forward of which an error says how the model was called."""

    def run(model: nn.Module, batch: Any) -> Any:
        try:
            return call_model(model, batch) if forward is None else forward(model, batch)
        except Exception as error:
            if not getattr(error, "__notes__", None):
                given = "forward= was called with the model and" if forward is not None else "the model was called with"
                error.add_note(f"{given} {_describe_batch(batch, is_whole=forward is not None)}")
            raise

    return run


def _describe_batch(batch: Any, *, is_whole: bool) -> str:
    """Describe what a forward was given: all of a batch, or the part that the usual forward takes."""
    if not is_whole and isinstance(batch, (tuple, list)) and batch:
        number = 1 if is_numbered(batch) else 0
        return f"batch[{number}], {_describe_batch(batch[number], is_whole=True)}"
    if isinstance(batch, Tensor):
        return f"a tensor {list(batch.shape)} of {str(batch.dtype).removeprefix('torch.')}"
    advice = "; pass tensors" if isinstance(batch, np.ndarray) else ""
    return f"a {type(batch).__name__}{advice}"


def has_overflown(layer: BatchNorm) -> bool:
    """Return whether a variance is infinite because its type, float16, holds nothing above 65,504."""
    _, var = get_running_buffers(layer)
    return var.dtype == torch.float16 and bool(var.isinf().any()) and not bool(var.isnan().any())


def _widen(model: nn.Module, run: Forward) -> tuple[nn.Module, Forward]:
    """Copy a model to float32, with a forward that takes the batches of the one in float16."""

    def widen(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.float16 else leaf

    def run_in_float32(model: nn.Module, batch: Any) -> Any:
        return run(model, map_batch(widen, batch))

    return copy.deepcopy(model).float(), run_in_float32
