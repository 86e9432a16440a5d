"""Population statistics of every batch-norm layer, exact: one definition, one walk, one check.

Statistics are exact if an ordinary evaluation under them gives each layer an input with just these moments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bnlab.exact.measure import compute_worst_error, measure_errors, measure_exactly, measure_under_batches
from bnlab.exact.operations import find_read, measure_by_operations
from bnlab.exact.source import Source
from bnlab.exact.task import CALLER, Ranks, Task
from bnlab.model.arguments import require_count, require_number
from bnlab.model.batches import (
    CountImages,
    Forward,
    call,
    check_counter,
    find_device,
    require_batches,
    require_forward,
)
from bnlab.model.borrow import restored
from bnlab.model.layers import (
    batch_norm_layers,
    join_names,
    warn_of_others,
)
from bnlab.model.reading import choose_reader
from bnlab.model.warn import warn
from bnlab.statistics.network import Statistics, digest_weights, read_weights

_FIRST_IMAGES = 256  # max_images="auto" begins with so many
_LEAST_BATCHES = 8  # and with so many batches: of fewer one cannot see how they scatter


def population_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    statistic: str = "exact",
    strategy: str = "breadth",
    layers: Sequence[str] | None = None,
    forward: Forward | None = None,
    images: CountImages | None = None,
    max_images: int | str | None = None,
    tolerance: float | None = None,
    standard_errors: bool = False,
    check: str = "some",
    group: Any = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Statistics:
    """Measure mean and variance (ddof 0) of what each batch-norm layer of `model` is given at inference.

    The model comes back as it was. At the end some batches are evaluated in the ordinary way. If that differs
    from what was measured, bnlab measures layer by layer instead, and warns why. Layers that run in other threads
    cannot be measured.

    `diagnose` and `recalibrate` take the same keywords in the same order, as far as they have them.

    Args:
        model: any module with batch-norm layers that keep running statistics.
        batches: what `forward` takes, such as a DataLoader. They are read once, and copies are kept on their devices
            (not of a list's). The result is exact for these images: give training images, augmented as in training.
            What waits between two layers takes up to half of the memory that is free. Beyond that batches are run again
            for each layer, and `.cost` says how often: `max_images=` takes a sample.
        statistic: "exact": earlier layers normalize with their own result. "precise": every layer normalizes with the
            statistics of its batch, and moments are pooled over batches, as by one-pass precise batch norm; the result
            depends on the batch size.
        strategy: "breadth", or "layerwise": whole forwards of all batches for each layer in turn, slow and simple. With
            "breadth" a forward waits at a layer while others run, or is ended there by an exception (GreenletExit) and
            begun again where memory is short. Forwards that hold a lock across a layer, or change a setting of the
            whole process there (the default dtype, filters of warnings, a kernel to use), need "layerwise"; with
            "breadth" the setting stays behind.
        layers: names of the layers to measure; default all. The others normalize with their own buffers.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list. It
            may give `functional_call` other parameters, but no buffers.
        images: `images(batch)` says how many images a batch has; default the rows of its first tensor.
        max_images: stop after the batch that completes so many images. "auto": read 256 images, or 8 batches if these
            are more, then twice as many again and again, until the standard errors of every layer are within
            `tolerance`.
        tolerance: for "auto", the largest standard error of a layer: of the mean in σ, of the variance relative, root
            mean square over channels.
        standard_errors: compute `.standard_errors` too, from how batches scatter; takes one more pass. Batches count as
            independent: shuffle. Of few batches they are rough, of one NaN.
        check: "some": the first and the last batch are evaluated at the end, and some that are drawn, up to an eighth
            of all. "all": all of them, for a model that keeps state, as a mask that its forward sets in few batches.
        group: a torch.distributed process group; every rank gives its share of the data, and gets the whole result.
        device: where batches are moved to; default the model's.
        progress: show a bar over the layers.

    Returns:
        `Statistics` with counts. Its `unseen` lists layers that no batch has reached or that cannot be measured, its
        `cost` and `check` are explained by `Cost` and `Check` of `bnlab.statistics.provenance`, its `standard_errors`
        are layer → (of the mean, of the variance), float64 [C].

    Raises:
        TypeError, ValueError: an argument is wrong, or a layer cannot be measured; the message says which and why.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    >>> model[0].weight.data.fill_(2.0).item()
    2.0
    >>> batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])]
    >>> exact = population_statistics(model, batches)
    >>> exact
    Statistics(1 layers; 1 channels; 3 images; check held)
    >>> exact["1"].mean.item(), round(exact["1"].var.item(), 4)  # of 2, 6 and 10
    (6.0, 10.6667)
    """
    # Arguments are checked before the model is touched or a batch is read.
    if statistic not in ("exact", "precise"):
        raise ValueError(f"{CALLER}: statistic={statistic!r}; choose 'exact' or 'precise'")
    is_precise = statistic == "precise"
    if strategy not in ("breadth", "layerwise"):
        raise ValueError(f"{CALLER}: strategy={strategy!r}; choose 'breadth' or 'layerwise'")
    if check not in ("some", "all"):
        raise ValueError(f"{CALLER}: check={check!r}; choose 'some' or 'all'")
    _require_amount(max_images, tolerance)
    require_batches(batches, CALLER)
    require_forward(forward, CALLER)
    targets = batch_norm_layers(model, layers, caller=CALLER, takes_scripts=not is_precise)
    scripted = [name for name, layer in targets.items() if isinstance(layer, torch.jit.ScriptModule)]
    if scripted and strategy == "breadth":
        strategy = "layerwise"
        warn(
            f"{CALLER}: {join_names(scripted)} are TorchScript, whose forwards cannot be interrupted; measured layer "
            f"by layer, with forwards of all data for each of {len(targets)} layers"
        )
    warn_of_others(model, CALLER)
    count = check_counter(images, CALLER)
    device = find_device(model, device, CALLER)
    ranks = Ranks(group, CALLER)

    reader = choose_reader(device, ranks.is_alone)
    task = Task(model, targets, forward or call, device, [], ranks, reader, checks_all=check == "all")
    measure_read = partial(_measure, task, count, is_precise, strategy, progress)

    with restored(model):  # loaders draw their seeds, too
        source = Source(batches, count)
        if max_images == "auto":
            return _measure_until_exact(task, count, source, measure_read, is_precise, tolerance or 0.0)
        ranks.run_together(lambda: source.read(task.data, max_images))  # type: ignore[arg-type]
        statistics = measure_read()
        if standard_errors:
            statistics.standard_errors = measure_errors(task, statistics, is_precise)
        return statistics


def _measure_until_exact(
    task: Task,
    count: Callable[[Any], int],
    source: Source,
    measure_read: Callable[[], Statistics],
    is_precise: bool,
    tolerance: float,
) -> Statistics:
    """Read and measure more and more batches, until the standard errors are within `tolerance` or there are no more."""
    wanted = _FIRST_IMAGES
    batches_before: int | None = None
    while True:
        read = partial(source.read, task.data, wanted, _LEAST_BATCHES)
        # A rank whose own batches have ended goes on with the others, because all ranks take part in each measurement.
        is_exhausted = all(task.ranks.gather(task.ranks.run_together(read)))
        batches = sum(task.ranks.gather(len(task.data)))
        if batches != batches_before:  # else the last read ended exactly with the last batch
            statistics = measure_read()
            statistics.standard_errors = measure_errors(task, statistics, is_precise)

        # Every rank has the same statistics and errors, so that all ranks stop after the same measurement.
        if is_exhausted or compute_worst_error(statistics.standard_errors or {}, statistics) <= tolerance:
            return statistics

        batches_before = batches
        # Large batches may already hold far more images than were wanted. Twice that number alone could be reached by a
        # single further batch, and each measurement takes all batches.
        wanted = 2 * max(wanted, sum(map(count, task.data)))


def _measure(
    task: Task, count: Callable[[Any], int], is_precise: bool, strategy: str, progress: bool | None
) -> Statistics:
    """Measure the batches that have been read."""
    from tqdm import tqdm

    # A rank may have no batches as long as another one has some.
    if not any(task.ranks.gather(bool(task.data))):
        raise ValueError(f"{CALLER}: batches is empty; pass at least one batch")

    check = None
    seconds = 0.1 if sys.stderr.isatty() else 5.0  # between updates of the bar: a log keeps each of them as a line
    bar = tqdm(total=len(task.layers), desc="layers", unit="layer", disable=not progress, mininterval=seconds)
    with bar:
        if is_precise:
            moments, cost = measure_under_batches(task, bar.update)
        else:
            moments, cost, check = measure_exactly(task, strategy, bar.update)

    unseen = [name for name in task.layers if name not in moments]
    # This comes before the general error below, because it can say why a layer was not reached.
    read = find_read(task, [name for name in unseen if name not in task.not_seen], moments)
    if read:
        called = f"a forward reads {join_names(read)} without calling them, as layer.forward(x) does"
        if is_precise:
            raise ValueError(f"{CALLER}: {called}, or they are no batch norm in train mode; call them as layer(x)")
        warn(f"{CALLER}: {called}; measured layer by layer, with forwards of all data for each of {len(task.layers)}")
        moments, check, passes = measure_by_operations(task)
        cost.passes += passes
        cost.forwards += passes * len(task.data)
        unseen = [name for name in task.layers if name not in moments]
    if not moments:
        names = join_names(task.layers)
        raise ValueError(f"{CALLER}: the data reached none of the layers {names}, or none that can be measured")
    not_seen = set().union(*task.ranks.gather(task.not_seen)) - moments.keys()
    if not_seen:
        warn(
            f"{CALLER}: in the forward of {join_names(sorted(not_seen))} no batch-norm operation of torch's is seen "
            "that takes all channels; they are not measured"
        )

    eps = {name: task.layers[name].eps for name in moments}
    statistics = Statistics(moments, eps, unseen, read_weights(task.layers))
    cost.images = sum(map(count, task.data))
    statistics.cost = cost
    statistics.check = check
    statistics.network = digest_weights(task.root)
    return statistics


def _require_amount(max_images: int | str | None, tolerance: float | None) -> None:
    """Raise unless `max_images` is a count, "auto" or None, and `tolerance` a positive number where it is "auto"."""
    if max_images == "auto":
        if tolerance is None:
            raise ValueError(f'{CALLER}: tolerance=None; max_images="auto" needs one, such as 0.01')
        message = f"{CALLER}: tolerance={tolerance!r}; pass a positive relative error such as 0.01"
        require_number(tolerance, lambda error: error > 0, message)
        return
    if tolerance is not None:
        raise ValueError(f'{CALLER}: tolerance={tolerance}; it is for max_images="auto" only')
    if max_images is not None:
        require_count(max_images, f'{CALLER}: max_images={max_images!r}; pass at least 1, "auto", or None for all')
