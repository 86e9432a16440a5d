"""Population statistics of every batch-norm layer, exact.

`upstream="population"` is what a layer sees in the inference network, every earlier layer normalizing with its own
population statistics; so layers have to be finished in order of depth (`breadth`, or its slow twin `layerwise`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from bnlab.arguments import check_batches, check_count, check_forward, check_number, find_device
from bnlab.batches import Forward, call
from bnlab.borrowing import KeptTensors, borrowed, gradients_set_aside
from bnlab.exact.batch_upstream import measure_batch_upstream
from bnlab.exact.breadth import CALLER, Evaluation
from bnlab.exact.budget import Budget
from bnlab.exact.fixed_point import measure
from bnlab.exact.job import Job, KeptBatches, Source
from bnlab.exact.layerwise import measure_layerwise
from bnlab.exact.ranks import Ranks
from bnlab.exact.standard_errors import worst_error
from bnlab.exact.watch import OtherStatistics
from bnlab.in_mode import find_left_in_eval, in_mode, keep_weights_of_own_modes
from bnlab.layers import (
    BatchNorm,
    batch_norm_layers,
    get_running_buffers,
    join_names,
    unwrap_parallel,
)
from bnlab.loans import refuse_other_threads
from bnlab.memory import memory_limit
from bnlab.moments import Moments
from bnlab.randomness import RandomStream, list_generators
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
    channels_last: bool = True,
    memory: int | str | None = None,
    progress: bool | None = None,
    group: Any = None,
) -> Statistics:
    """Mean and variance (ddof 0) of what each batch-norm layer of `model` sees, over all of `batches`.

    The model is borrowed: it is evaluated with dropout and the like off, and comes back as it was. Layers that are
    not in `layers` normalize with their own buffers. Batches may differ in size, image size and structure. A layer
    that is called several times in a forward, or skipped by some batches, has statistics that depend on themselves:
    passes are repeated until they agree.

    On the CPU images [N, C, H, W] and the weights of convolutions are handed over with the channels innermost, which is
    faster; noise is then drawn in that order. A forward that raises is run again in their own layout.

    At the end some images of the first batch are evaluated in the ordinary way under the result; breadth-first also of
    the second one, of two others with other shapes, and of up to eight that have come to other layers. A RuntimeWarning
    names layers that hooks do not see, modules that keep running statistics and are no batch norm of torch's (by the
    names of their tensors: running_mean, ema_var, ...; frozen ones excepted), layers that normalize with their batch's
    statistics all the same, with other ones than were measured, or something else than their input, layers whose
    statistics something else in the model uses too, and the first layer at which this evaluation gives something else
    (with upstream="batch", the first batch when it is run again); `.check` keeps them.

    Each batch draws random numbers of its own, by torch's seed, the rank and its place among the batches; data that
    were drawn from the same seed have others. As the caller's random state is put back, a loader that draws from it
    (that shuffles, say) gives the same batches when the model is measured again; with its own generator it goes on.

    Breadth-first, batches take turns. What modules keep in attributes and what hooks keep in containers (in closures,
    arguments, or global by name) each batch has for itself, and it is afterwards as it was before. State elsewhere is
    mixed up (class attributes, objects behind globals or with slots, those that can be iterated over, arrays written in
    place, weights written through `.data`, entries that are exchanged among more than 10,000; random numbers of numpy
    and Python, unless a module holds their generator): `.check` and `self_consistency` show it. What a forward changes
    there temporarily (by `mock.patch`, the working directory, environment variables, levels of loggers) may stay
    changed. strategy="layerwise" does without both, if the forward puts back in `finally` what it changes: it is cut
    off at layers. A forward that holds what the next one waits for never ends: threads' locks that the code names are
    refused, but nobody sees a queue that serves as a pool, the lock of a file, or a lock behind a computed name;
    strategy="layerwise" does without those too.

    Args:
        model: any module with batch-norm layers that keep running statistics.
        batches: what `forward` takes, e.g. a DataLoader; a generator will do. Read once and held, so each batch has to
            be new. Tensors and numpy arrays, alone or in tuples, lists and dictionaries (of any class), are copied for
            each forward; of other objects a shallow copy is handed over, where there can be one: what they hold is the
            batch's own. A batch without tensors counts as one image.
        upstream: "population", or "batch": every layer normalizes with its mini-batch's statistics and the moments
            are pooled over all batches (what one-pass "precise BN" tools compute, here with dropout off; depends on
            the batch size).
        strategy: "breadth", or "layerwise": one forward pass up to each layer in turn, the slow obvious twin. With
            upstream="batch" both are the same one pass.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        layers: names of the layers to measure; default all.
        max_images: stop after the batch with which at least so many images have been read. "auto": twice as many,
            again and again from 256 on, until every layer's standard errors are within `tolerance`; no more are read.
        tolerance: for "auto": the error of the mean relative to σ and that of the variance relative to the variance,
            root mean square over a layer's channels, in the worst layer.
        standard_errors: give `.standard_errors` with the result; reads every activation once more.
        device: where the batches' tensors are moved; default the model's own.
        channels_last: False keeps images and weights in their own layout, for a forward that reads strides.
        memory: limit for live activations, in bytes or as "4GiB"; default 60% of what is free. Batches that do not
            fit are run again from the input up to the next layer; `.cost` says how often.
        progress: show a bar over the layers, on a terminal, in a notebook or in a log.
        group: a torch.distributed process group. Every rank calls this with its own share of the data, which may be
            empty, and gets the statistics of all of it.

    Returns:
        `Statistics` whose moments carry their counts. `.unseen`: layers that no batch reached. `.cost`: see
        `bnlab.exact.breadth.Cost`. `.check`: see `bnlab.exact.inspection.Check`. `.standard_errors`: layer → (of the
        mean, of the variance), float64 [C], with images, which are the rows of the layer's input, as the independent
        units, for the upstream statistics as they are; a RuntimeWarning names layers with more rows than images.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: one out of its range; no batches; one that can be read only once, where it is needed more often;
            with upstream="batch", a call in train mode where the next batch is made, or a layer that takes its running
            statistics; the model itself called in another thread, also by its own forward (of a deep copy that another
            thread makes meanwhile nobody knows: it has statistics that the model is lent); no batch-norm layer
            (reached); a layer with fewer than two values, other channels, or values that are not finite; statistics of
            shared layers that do not settle; one batch that does not fit `memory`; another rank's failure. The model is
            as before in every case, also when its own forward raises.
    """
    _check_arguments(batches, upstream, strategy, forward, max_images, tolerance)
    targets = batch_norm_layers(model, layers, caller=CALLER)
    _check_buffers(targets)
    if upstream == "batch":
        _check_modes(model, targets)
    device = find_device(model, device, CALLER)
    limit = memory_limit(memory, device)
    auto = max_images == "auto"
    source = KeptBatches(batches, RandomStream(device, list_generators(model.modules()))) if auto else batches
    images = _FIRST_IMAGES if auto else max_images
    while True:
        counted, ranks = Source(source, images), Ranks(group)  # type: ignore[arg-type]
        with (
            borrowed(model),
            gradients_set_aside(model),
            keep_weights_of_own_modes(model).restored(unseen=True),
            in_mode(model, training=False),
            _bar(len(targets), progress) as bar,
        ):
            refuse_other_threads(unwrap_parallel(model))
            job = Job(
                unwrap_parallel(model),
                targets,
                forward or call,
                device,
                ranks,
                Budget(limit, exact=memory is not None),
                KeptTensors(model.parameters()),
                by_image=auto or standard_errors,
                channels_last=channels_last,
                others=OtherStatistics.find(model, targets),
                bar=bar,
            )
            with job.weights.restored(unseen=True):
                found = {"population": _STRATEGIES[strategy], "batch": measure_batch_upstream}[upstream](job, counted)
        statistics = job.make_statistics(found, counted)
        exhausted = all(job.ranks.gather(counted.exhausted))
        if not auto or exhausted or worst_error(statistics) <= (tolerance or 0.0):
            if statistics.check is not None and (sentences := statistics.check.warnings()):
                warnings.warn(f"{CALLER}: " + "\n".join(sentences), RuntimeWarning, stacklevel=2)
            if job.crowded:
                warnings.warn(
                    f"{CALLER}: the input of {join_names(job.crowded)} has more rows than the batches have images; if "
                    "several are of one image (crops, frames, tokens), they are not independent, as standard errors "
                    "take them to be, and these are too small",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return statistics
        images = 2 * (images or 0)  # type: ignore[operator]


def _check_arguments(
    batches: object,
    upstream: str,
    strategy: str,
    forward: object,
    max_images: int | str | None,
    tolerance: float | None,
) -> None:
    for key, value, allowed in (
        ("upstream", upstream, ("population", "batch")),
        ("strategy", strategy, ("breadth", "layerwise")),
    ):
        if value not in allowed:
            raise ValueError(f"{CALLER}: {key}={value!r}; choose {' or '.join(map(repr, allowed))}")
    check_batches(batches, CALLER)
    check_forward(forward, CALLER)
    if max_images is not None and max_images != "auto":
        check_count(max_images, f'{CALLER}: max_images={max_images!r}; pass at least 1, "auto", or None for all')
    if (tolerance is None) == (max_images == "auto"):
        raise ValueError(f'{CALLER}: tolerance={tolerance}; it goes with max_images="auto", which needs it')
    if tolerance is not None:
        message = f"{CALLER}: tolerance={tolerance!r}; pass a positive relative error such as 0.01"
        check_number(tolerance, lambda error: error > 0, message)


def _check_buffers(targets: dict[str, BatchNorm]) -> None:
    for name, layer in targets.items():
        kept = len(get_running_buffers(layer)[0])
        if kept != layer.num_features:
            raise ValueError(
                f"{CALLER}: layer {name!r} keeps statistics of {kept} channels and normalizes {layer.num_features} "
                "(one for each part of a batch?), which have no one population; leave it out with layers=[...]"
            )


def _check_modes(model: nn.Module, targets: dict[str, BatchNorm]) -> None:
    if frozen := find_left_in_eval(model, targets):
        raise ValueError(
            f"{CALLER}: {join_names(frozen)} left in eval mode where the model is put into train mode (train is "
            "overridden), and so normalized with running statistics, not the batch's; leave such layers out with "
            "layers=[...], or use upstream='population'"
        )


def _measure_breadth_first(job: Job, source: Source) -> dict[str, Moments]:
    evaluation = Evaluation(
        job.model,
        job.targets,
        job.forward,
        job.device,
        budget=job.budget,
        ranks=job.ranks,
        by_image=job.by_image,
        channels_last=job.channels_last,
        others=job.others,
    )
    with job.weights.restored(unseen=True):  # the check is to begin with the model's own
        found = measure(evaluation, source, job.bar.update, job.cost)
    job.parts, job.check = evaluation.parts, evaluation.check()
    return found


def _bar(total: int, shown: bool | None) -> Any:
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets shows a bar of text
        from tqdm.auto import tqdm
    every = 0.1 if sys.stderr.isatty() else 5.0  # seconds: a log keeps every line
    return tqdm(total=total, desc="layers", unit="layer", disable=not shown, mininterval=every)


_STRATEGIES = {"breadth": _measure_breadth_first, "layerwise": measure_layerwise}
