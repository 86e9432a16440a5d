"""Population statistics of every batch-norm layer, exact: one definition, one walk, one check.

Statistics are exact where an ordinary evaluation under them gives each layer an input with just these moments.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bnlab.arguments import check_batches, check_count, check_forward, check_number, find_device
from bnlab.batches import Forward, call, list_tensors
from bnlab.borrow import keep_random_state
from bnlab.exact.inputs import Extract, Inputs
from bnlab.exact.measurement import measure_exactly, measure_under_batches
from bnlab.exact.ranks import Ranks
from bnlab.exact.readers import choose_reader
from bnlab.exact.standard_errors import LEAST_BATCHES, find_worst_error, measure_errors, warn_of_units
from bnlab.exact.task import CALLER, Task
from bnlab.exact.units import CountImages, Images
from bnlab.layers import batch_norm_layers, check_parameters, join_names, unwrap_parallel, warn_of_others
from bnlab.memory import find_free_bytes, memory_limit
from bnlab.statistics import Statistics, read_weights

_FIRST_IMAGES = 256  # that max_images="auto" begins with


def population_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    upstream: str = "population",
    strategy: str = "breadth",
    forward: Forward | None = None,
    layers: Sequence[str] | None = None,
    max_images: int | str | None = None,
    tolerance: float | None = None,
    standard_errors: bool = False,
    device: torch.device | str | None = None,
    memory: int | str | None = None,
    progress: bool | None = None,
    group: Any = None,
    images: CountImages | None = None,
    inputs: Mapping[Any, Extract] | None = None,
) -> Statistics:
    """Mean and variance (ddof 0) of what each batch-norm layer of `model` sees at inference, over all of `batches`.

    The model comes back as it was. A few images are evaluated again at the end: where that does not give what was
    measured, all is measured layer by layer, with a RuntimeWarning that says why. Forwards that wait for each other (a
    lock held across a layer) need strategy="layerwise"; layers that run in threads cannot be measured.

    Args:
        model: any module with batch-norm layers that keep running statistics.
        batches: what `forward` takes, e.g. a DataLoader; read once and held, each where it is. The result is exact for
            these images: give those that the model is evaluated with, usually training images without augmentation.
        upstream: "population", or "batch": every layer normalizes with its mini-batch's statistics and moments are
            pooled over the batches, as one-pass "precise BN" tools do (it depends on the batch size).
        strategy: "breadth", or "layerwise": a forward up to each layer in turn, the slow twin.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        layers: names of those to measure, all by default; the others normalize with their own buffers.
        max_images: stop after the batch with which so many images are read. "auto": twice as many again and again, from
            256 on, until the standard errors of every layer are within `tolerance`.
        tolerance: for "auto": of the mean in σ and of the variance relative, root mean square over channels.
        standard_errors: give `.standard_errors` too, as of independent images, for one more forward pass.
        device: where batches are moved; default the model's.
        memory: limit for live activations, bytes or "4GiB"; default 40% of what is free. Batches that do not fit are
            run again from the input up to the next layers; `.cost` says how often.
        progress: show a bar over the layers.
        group: a torch.distributed process group: every rank gives its share of the data, and gets the whole result.
        images: `images(batch)` is how many images a batch has, in equal blocks of rows, or an id for each row; default
            the rows of its first tensor.
        inputs: by a layer's name or class, `function(layer, args, kwargs)`: the values [M, C] or [N, C, ...] that a
            layer with a forward of its own normalizes, or these and the numbers of their channels.

    Returns:
        `Statistics` with counts. `.unseen`: layers that no batch has reached. `.cost`, `.check`: see `Cost` and `Check`
        of `bnlab.statistics`. `.standard_errors`: layer → (of the mean, of the variance), float64 [C].

    Raises:
        TypeError, ValueError: an argument is wrong, or a layer cannot be measured: the message says which and why.
    """
    _check_arguments(upstream, strategy, max_images, tolerance)
    check_batches(batches, CALLER)
    check_forward(forward, CALLER)
    targets = batch_norm_layers(model, layers, caller=CALLER)
    check_parameters(model, CALLER)
    warn_of_others(model, CALLER)
    chosen = Inputs(targets, inputs, CALLER)
    units = Images(images, CALLER)
    device = find_device(model, device, CALLER)
    limit = memory_limit(memory, device)
    ranks = Ranks(group)
    reader = choose_reader(device, ranks.is_alone)
    task = Task(unwrap_parallel(model), targets, forward or call, device, [], ranks, chosen, reader)

    with keep_random_state(model), contextlib.closing(task.buffers):  # loaders draw their seeds
        source = _Source(batches, units)
        if max_images != "auto":
            ranks.together(lambda: source.read(task.data, max_images))  # type: ignore[arg-type]
            statistics = _measure(task, units, upstream, strategy, limit, progress)
            if standard_errors:
                statistics.standard_errors, units_of_errors = measure_errors(task, units, statistics, upstream)
                warn_of_units(units_of_errors)
            return statistics

        wanted = _FIRST_IMAGES
        batches_before: int | None = None
        while True:
            least = 1 if units.is_told else LEAST_BATCHES
            is_exhausted = all(ranks.gather(ranks.together(partial(source.read, task.data, wanted, least))))
            batches_now = sum(ranks.gather(len(task.data)))
            if batches_now != batches_before:
                statistics = _measure(task, units, upstream, strategy, limit, progress)
                statistics.standard_errors, units_of_errors = measure_errors(task, units, statistics, upstream)
            batches_before = batches_now
            if is_exhausted or find_worst_error(statistics) <= (tolerance or 0.0):
                warn_of_units(units_of_errors)
                return statistics
            wanted = 2 * max(wanted, sum(map(units.count, task.data)))


def _check_arguments(upstream: str, strategy: str, max_images: int | str | None, tolerance: float | None) -> None:
    choices = ("upstream", upstream, "population", "batch"), ("strategy", strategy, "breadth", "layerwise")
    for key, value, *allowed in choices:
        if value not in allowed:
            raise ValueError(f"{CALLER}: {key}={value!r}; choose {' or '.join(map(repr, allowed))}")
    if max_images is not None and max_images != "auto":
        check_count(max_images, f'{CALLER}: max_images={max_images!r}; pass at least 1, "auto", or None for all')
    if (tolerance is None) == (max_images == "auto"):
        raise ValueError(f'{CALLER}: tolerance={tolerance}; it goes with max_images="auto", which needs it')
    if tolerance is not None:
        message = f"{CALLER}: tolerance={tolerance!r}; pass a positive relative error such as 0.01"
        check_number(tolerance, lambda error: error > 0, message)


class _Source:
    """The caller's batches, read as far as they are wanted."""

    def __init__(self, batches: Iterable[Any], images: Images) -> None:
        self._reader = iter(batches)
        self._images = images
        self._free: dict[torch.device, int] = {}
        self._bytes: dict[torch.device, int] = {}

    def read(self, data: list[Any], wanted: int | None, least_batches: int = 1) -> bool:
        """Read a batch, and on until there are so many images and batches; whether there are no more.

        Raises:
            ValueError: a batch has no images, or all batches take more than half of the memory that was free.
        """
        images = sum(map(self._images.count, data))
        for batch in self._reader:
            self._check_memory(len(data))
            count = self._images.count(batch)
            if count < 1:
                raise ValueError(f"{CALLER}: a batch has no images; leave empty batches out")
            data.append(batch)
            images += count
            self._count_bytes(batch)
            if wanted is not None and images >= wanted and len(data) >= least_batches:
                return False
        return True

    def _count_bytes(self, batch: Any) -> None:
        for tensor in list_tensors(batch):
            device = tensor.device
            if device not in self._free:
                self._free[device] = find_free_bytes(device)
            self._bytes[device] = self._bytes.get(device, 0) + tensor.nbytes

    def _check_memory(self, batches: int) -> None:
        """Refuse one more batch where those that were read take more than half of the memory."""
        batches_take = "1 batch takes" if batches == 1 else f"{batches:,} batches take"
        for device, size in self._bytes.items():
            if 2 * size > self._free[device]:
                raise ValueError(
                    f"{CALLER}: {batches_take} {size:,} bytes, more than half of the memory that was free, and there "
                    "are more; pass max_images=, as a loader without end needs, or fewer batches"
                )


def _measure(task: Task, images: Images, upstream: str, strategy: str, limit: int, progress: bool | None) -> Statistics:
    from tqdm import tqdm

    if not any(task.ranks.gather(bool(task.data))):
        raise ValueError(f"{CALLER}: batches is empty; pass at least one batch")
    check = None
    every = 0.1 if sys.stderr.isatty() else 5.0  # seconds: a log keeps every line
    with tqdm(total=len(task.layers), desc="layers", unit="layer", disable=not progress, mininterval=every) as bar:
        if upstream == "batch":
            moments, cost = measure_under_batches(task, bar.update)
        else:
            moments, cost, check = measure_exactly(task, strategy, limit, bar.update)
    if not moments:
        raise ValueError(f"{CALLER}: the data reached none of the layers {join_names(task.layers)}")
    eps = {name: task.layers[name].eps for name in moments}
    unseen = [name for name in task.layers if name not in moments]
    statistics = Statistics(moments, eps, unseen, read_weights(task.layers))
    cost.images = sum(map(images.count, task.data))
    statistics.cost = cost
    statistics.check = check
    return statistics
