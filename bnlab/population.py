"""Population statistics of every batch-norm layer, exact.

`upstream="population"` is what a layer sees in the inference network, every earlier layer normalizing with its own
population statistics; so layers have to be finished in order of depth (`breadth`, or the slow twin here).
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.arguments import check_batches, check_count, check_forward, check_number, device_of
from bnlab.breadth import CALLER, Cost, Evaluation, check_moments
from bnlab.fixed_point import measure
from bnlab.inspection import Check, Sample, check_result, count_images
from bnlab.layers import (
    BatchNorm,
    Forward,
    batch_norm_layers,
    borrowed,
    call,
    check_input,
    copied,
    layer_input,
    set_buffers_aside,
    tracked,
    unwrapped,
    without_transforms,
)
from bnlab.memory import Budget, memory_limit
from bnlab.moments import Moments, Partial, read
from bnlab.ranks import Ranks
from bnlab.statistics import Statistics, load
from bnlab.switching import ModuleState, RandomStream, forward_hooks

_Found = dict[str, Moments]
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

    At the end some images of the first batch are evaluated in the ordinary way under the result. A RuntimeWarning names
    layers that hooks do not see, layers that normalize with their batch's statistics all the same, and the first layer
    at which this evaluation gives something else; `.check` keeps them.

    Breadth-first, batches take turns. What modules keep in attributes and what hooks keep in containers (in closures,
    arguments, or global by name) each batch has for itself, and it is afterwards as it was before. State elsewhere is
    mixed up (class attributes, objects behind globals, arrays written in place; random numbers that are not torch's):
    `self_consistency` shows it, strategy="layerwise" does without.

    Args:
        model: any module with batch-norm layers that keep running statistics.
        batches: what `forward` takes, e.g. a DataLoader; a generator will do. Read once and held, so each batch has to
            be new. Tensors, alone or in tuples, lists and dictionaries, are copied for each forward; other objects are
            handed over as they are and count as one image.
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
        `bnlab.breadth.Cost`. `.check`: see `bnlab.inspection.Check`. `.standard_errors`: layer → (of the mean, of the
        variance), float64 [C], with images as the independent units, for the upstream statistics as they are.

    Raises:
        TypeError: an argument of a wrong kind. ValueError: one out of its range; no batches; no batch-norm layer
            (reached); a layer with fewer than two values, other channels, or values that are not finite; statistics of
            shared layers that do not settle; one batch that does not fit `memory`; another rank's failure. The model is
            as before in every case, also when its own forward raises.
    """
    _check_arguments(batches, upstream, strategy, forward, max_images, tolerance)
    targets = batch_norm_layers(model, layers, caller=CALLER)
    _check_buffers(targets)
    place = device_of(model, device, CALLER)
    limit = memory_limit(memory, place)
    auto = max_images == "auto"
    source = _Kept(batches) if auto else batches
    images = _FIRST_IMAGES if auto else max_images
    while True:
        counted = _Source(source, images)  # type: ignore[arg-type]
        ranks = Ranks(group)
        job = _Job(unwrapped(model), targets, forward or call, place, ranks, auto or standard_errors, channels_last)
        job.budget = Budget(limit, exact=memory is not None)
        with borrowed(model), _bar(len(targets), progress) as job.bar:
            model.eval()
            found = {"population": _STRATEGIES[strategy], "batch": _batch_upstream}[upstream](job, counted)
        statistics = job.statistics(found, counted)
        exhausted = all(job.ranks.gather(counted.exhausted))
        if not auto or exhausted or _worst_error(statistics) <= (tolerance or 0.0):
            if statistics.check is not None and (found_wrong := statistics.check.warnings()):
                warnings.warn(f"{CALLER}: " + "\n".join(found_wrong), RuntimeWarning, stacklevel=2)
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
        kept = len(tracked(layer)[0])
        if kept != layer.num_features:
            raise ValueError(
                f"{CALLER}: layer {name!r} keeps statistics of {kept} channels and normalizes {layer.num_features} "
                "(one for each part of a batch?), which have no one population; leave it out with layers=[...]"
            )


@dataclass
class _Job:
    """What every way of measuring needs, and what it leaves beside the moments."""

    model: nn.Module
    targets: dict[str, BatchNorm]
    forward: Forward
    device: torch.device
    ranks: Ranks
    by_image: bool
    channels_last: bool
    budget: Budget = field(init=False)
    bar: Any = None
    cost: Cost = field(default_factory=Cost)
    parts: dict[str, list[Partial]] = field(default_factory=dict)  # where `by_image`
    hooks: list[Any] = field(default_factory=list)  # of the measurement, on the layers
    check: Check | None = None

    def statistics(self, found: _Found, source: _Source) -> Statistics:
        """ValueError if there was nothing to measure."""
        if not sum(self.ranks.gather(source.count)):
            raise ValueError(f"{CALLER}: batches is empty; pass at least one batch (is a generator used up?)")
        if not found:
            raise ValueError(f"{CALLER}: the forward reached none of {len(self.targets)} batch-norm layers")
        self.cost.images, self.cost.peak_bytes = source.images, self.budget.peak
        unseen = [name for name in self.targets if name not in found]
        statistics = Statistics(found, {name: self.targets[name].eps for name in found}, unseen)
        statistics.cost, statistics.check = self.cost, self.check
        if self.by_image:
            statistics.standard_errors = {
                name: _standard_error(moments, self.parts.get(name, []), self.ranks) for name, moments in found.items()
            }
        return statistics


def _standard_error(moments: Moments, parts: list[Partial], ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Of the mean and of the variance, from the spread of the images' means and second moments about the mean."""
    square, images = torch.zeros(2, len(moments.mean), dtype=torch.float64, device="cpu"), 0
    for part in parts:
        for count, mean, var in part.groups():
            offset = mean - moments.mean
            spread = torch.stack((offset, var + offset.square() - moments.var))
            # Images weigh by their values; with equal ones this is Σ(·)²/N².
            square += (spread * (count / moments.count)).square().sum(1)
            images += len(mean)
    gathered = ranks.gather((square, images))
    total, count = sum(s for s, _ in gathered), sum(n for _, n in gathered)
    errors = (total * count / (count - 1)).sqrt() if count > 1 else torch.full_like(square, torch.nan)
    return errors[0], errors[1]


def _worst_error(statistics: Statistics) -> float:
    """The largest relative standard error of a layer, root mean square over its channels; inf if not known."""
    worst = 0.0
    for name, (of_mean, of_var) in (statistics.standard_errors or {}).items():
        # A dead channel has no error and no variance.
        var = statistics[name].var.clamp(min=torch.finfo(torch.float64).tiny)
        worst = max(
            worst, *(float(e.square().mean().sqrt().nan_to_num(math.inf)) for e in (of_mean / var.sqrt(), of_var / var))
        )
    return worst


def _bar(total: int, shown: bool | None) -> Any:
    from tqdm.auto import tqdm

    every = 0.1 if sys.stderr.isatty() else 5.0  # seconds: a log keeps every line
    return tqdm(total=total, desc="layers", unit="layer", disable=not shown, mininterval=every)


class _Kept:
    """Batches that are read when they are asked for, once, and kept."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._read: list[Any] = []
        self._rest = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        yield from self._read
        for batch in self._rest:
            self._read.append(batch)
            yield batch


class _Source:
    """The caller's batches, counted."""

    def __init__(self, batches: Iterable[Any], max_images: int | None) -> None:
        self._batches, self._limit = batches, max_images
        self.count = self.images = 0
        self.first: Any = None
        self.exhausted = False

    def __iter__(self) -> Iterator[Any]:
        self.count = self.images = 0
        for batch in self._batches:
            images = count_images(batch)
            if not images:
                raise ValueError(f"{CALLER}: batch {self.count} has no images; leave empty batches out")
            self.first = batch if self.count == 0 else self.first
            self.count += 1
            self.images += images
            yield batch
            if self._limit is not None and self.images >= self._limit:
                return
        self.exhausted = True


def _breadth(job: _Job, source: _Source) -> _Found:
    evaluation = Evaluation(
        job.model,
        job.targets,
        job.forward,
        job.device,
        budget=job.budget,
        ranks=job.ranks,
        by_image=job.by_image,
        channels_last=job.channels_last,
    )
    found = measure(evaluation, source, job.bar.update, job.cost)
    job.parts, job.check = evaluation.parts, evaluation.check()
    return found


class _Reached(BaseException):
    """Ends a forward pass at the layer that is being measured."""


def _layerwise(job: _Job, source: _Source) -> _Found:
    """Run everything up to the first unfinished layer, again and again."""
    if job.ranks.size > 1 or job.by_image:
        raise ValueError(f"{CALLER}: strategy='layerwise' has no group and no standard errors; use 'breadth'")
    found: _Found = {}
    targets, hooks = job.targets, forward_hooks(job.model)
    arrived: dict[str, list[Moments]] = {}
    samples: dict[str, Sample] = {}
    visited: set[str] = set()

    def stop(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = without_transforms(layer_input(args, kwargs))
            if isinstance(x, Tensor) and not x.numel():
                return
            if name in visited:
                raise ValueError(
                    f"{CALLER}: layer {name!r} is reached several times in one forward; "
                    "which only strategy='breadth' can measure; or leave it out with layers=[...]"
                )
            visited.add(name)
            if name not in found:
                check_input(name, targets[name], x, CALLER)
                arrived.setdefault(name, []).append(Moments.of(x))
                raise _Reached

        return hook

    for name, layer in targets.items():
        job.hooks.append(layer.register_forward_pre_hook(stop(name), with_kwargs=True))
        set_buffers_aside(layer)
    batches, random, state = list(source), RandomStream(job.device), ModuleState(job.model, hooks)
    while True:
        arrived.clear()
        for index, batch in enumerate(batches):
            visited.clear()
            with contextlib.suppress(_Reached):
                _forward_once(job, batch, index, random, state)
        if not arrived:
            break
        if len(arrived) > 1:
            raise ValueError(
                f"{CALLER}: batches reach {' and '.join(map(repr, arrived))} first; "
                "skipped layers need strategy='breadth'; or leave them out with layers=[...]"
            )
        ((name, moments),) = arrived.items()
        found[name], samples[name] = reduce(Moments.merge, moments), Sample(None, moments[0])
        check_moments(name, found[name], targets[name])
        load(targets[name], found[name])
        job.bar.update()
    if batches:
        visited.clear()
        _check(job, found, samples, batches[0], random, state)
    return found


def _batch_upstream(job: _Job, source: _Source) -> _Found:
    """One pass in which every measured layer normalizes with its batch's statistics; moments are pooled."""
    found: _Found = {}
    hooks = forward_hooks(job.model)

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = without_transforms(layer_input(args, kwargs))
            if isinstance(x, Tensor) and not x.numel():
                return
            check_input(name, job.targets[name], x, CALLER)
            if x.numel() == x.shape[1]:
                raise ValueError(
                    f"{CALLER}: a batch has one value per channel at layer {name!r} and so no variance to normalize "
                    "with; use larger batches or upstream='population'"
                )
            moments = Moments.of(x)
            if job.by_image:
                job.parts.setdefault(name, []).append(read(x, moments.mean, by_image=True))
            found[name] = found[name].merge(moments) if name in found else moments

        return hook

    for name, layer in job.targets.items():
        job.hooks.append(layer.register_forward_pre_hook(look(name), with_kwargs=True))
        set_buffers_aside(layer)
        layer.train()

    random, state = RandomStream(job.device), ModuleState(job.model, hooks)

    def work() -> None:
        for index, batch in enumerate(source):
            state.accept()
            own = random.capture()  # the caller's batches draw from the caller's stream
            random.apply(random.begin(index))
            with torch.no_grad(), state.undone():
                job.forward(job.model, copied(batch, job.device))
            random.apply(own)

    job.ranks.together(work)
    job.cost.batches = job.cost.forwards = source.count
    merged: _Found = {}
    # The order of the first rank that has seen them, for all the same.
    for name in dict.fromkeys(name for names in job.ranks.gather(list(found)) for name in names):
        merged[name] = job.ranks.merged(found.get(name, Moments.empty(job.targets[name].num_features)))
        check_moments(name, merged[name], job.targets[name])
        job.bar.update()
    if source.count and found:
        for layer in job.targets.values():
            layer.eval()
        _check(job, found, {}, source.first, random, state)
    return merged


def _check(
    job: _Job, found: _Found, samples: dict[str, Sample], batch: Any, random: RandomStream, state: ModuleState
) -> None:
    """Evaluate the first batch once more, without the measurement's hooks."""
    for hook in job.hooks:
        hook.remove()
    job.check = check_result(
        job.model, job.targets, found, samples, batch, lambda batch: _forward_once(job, batch, 0, random, state)
    )


def _forward_once(job: _Job, batch: Any, index: int, random: RandomStream, state: ModuleState) -> None:
    """One forward that leaves nothing behind, with the batch's own random stream."""
    with borrowed(job.model), torch.no_grad(), state.undone():
        random.apply(random.begin(index))
        job.forward(job.model, copied(batch, job.device))


_STRATEGIES = {"breadth": _breadth, "layerwise": _layerwise}
