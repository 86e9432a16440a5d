"""Population statistics of every batch-norm layer, exact: one definition, one walk, one check.

Statistics are exact where an ordinary evaluation under them gives each layer an input with just these moments.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from bnlab.arguments import check_batches, check_count, check_forward, check_number, find_device
from bnlab.batches import Forward, call, count_images
from bnlab.borrow import keep_random_state
from bnlab.exact.measurement import measure_exactly, measure_under_batches
from bnlab.exact.ranks import Ranks
from bnlab.exact.standard_errors import find_worst_error, measure_errors
from bnlab.exact.task import CALLER, Task
from bnlab.layers import batch_norm_layers, join_names, unwrap_parallel, warn_of_lookalikes
from bnlab.memory import memory_limit
from bnlab.statistics import Statistics

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
) -> Statistics:
    """Mean and variance (ddof 0) of what each batch-norm layer of `model` sees at inference, over all of `batches`.

    The model comes back as it was. A few images are evaluated again at the end: where that does not give what was
    measured, all is measured layer by layer, with a RuntimeWarning that says why. Forwards that wait for each other (a
    lock held across a layer), or that run layers in threads, need strategy="layerwise".

    Args:
        model: any module with batch-norm layers that keep running statistics.
        batches: what `forward` takes, e.g. a DataLoader; read once and held, each where it is. The result is exact for
            these images: give those that the model is evaluated like, usually training images without augmentation.
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

    Returns:
        `Statistics` with counts. `.unseen`: layers that no batch has reached. `.cost`, `.check`: see `Cost` and `Check`
        of `bnlab.statistics`. `.standard_errors`: layer → (of the mean, of the variance), float64 [C].

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: one out of its range, no batches, no batch-norm layer or none reached, values that are not finite,
            fewer than two, one batch that does not fit `memory`, shared layers that do not settle, a rank's failure.
    """
    _check_arguments(upstream, strategy, max_images, tolerance)
    check_batches(batches, CALLER)
    check_forward(forward, CALLER)
    targets = batch_norm_layers(model, layers, caller=CALLER)
    warn_of_lookalikes(model, CALLER)
    device = find_device(model, device, CALLER)
    limit, ranks = memory_limit(memory, device), Ranks(group)
    task = Task(unwrap_parallel(model), targets, forward or call, device, [], ranks)
    wanted = _FIRST_IMAGES if (is_auto := max_images == "auto") else max_images
    with keep_random_state(model):  # loaders draw their seeds
        reader = iter(batches)
        while True:
            exhausted = all(ranks.gather(_read_batches(reader, task.data, wanted)))  # type: ignore[arg-type]
            statistics = _measure(task, upstream, strategy, limit, progress)
            if standard_errors or is_auto:
                statistics.standard_errors = measure_errors(task, statistics, upstream)
            if not is_auto or exhausted or find_worst_error(statistics) <= (tolerance or 0.0):
                return statistics
            wanted = 2 * (wanted or 0)  # type: ignore[operator]


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


def _read_batches(reader: Iterator[Any], data: list[Any], wanted: int | None) -> bool:
    """Read a batch, and on until there are so many images; whether there are no more."""
    images = sum(map(count_images, data))
    for batch in reader:
        data.append(batch)
        images += count_images(batch)
        if wanted is not None and images >= wanted:
            return False
    return True


def _measure(task: Task, upstream: str, strategy: str, limit: int, progress: bool | None) -> Statistics:
    from tqdm import tqdm

    if not any(task.ranks.gather(bool(task.data))):
        raise ValueError(f"{CALLER}: batches is empty; pass at least one batch")
    every, check = 0.1 if sys.stderr.isatty() else 5.0, None  # seconds: a log keeps every line
    with tqdm(total=len(task.layers), desc="layers", unit="layer", disable=not progress, mininterval=every) as bar:
        if upstream == "batch":
            moments, cost = measure_under_batches(task, bar.update)
        else:
            moments, cost, check = measure_exactly(task, strategy, limit, bar.update)
    if not moments:
        raise ValueError(f"{CALLER}: the data reached none of the layers {join_names(task.layers)}")
    eps = {name: task.layers[name].eps for name in moments}
    statistics = Statistics(moments, eps, [name for name in task.layers if name not in moments])
    statistics.cost, statistics.check = cost, check
    return statistics
