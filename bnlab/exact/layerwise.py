"""Exact statistics one layer after the other, each in forward passes of its own: the slow, obvious twin."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.batches import copy_batch, keep_batch
from bnlab.borrowing import borrowed, set_buffers_aside
from bnlab.exact.breadth import CALLER, check_moments
from bnlab.exact.inspection import Inspection, Sample
from bnlab.exact.job import Job, Source
from bnlab.layers import check_input, layer_input, strip_transforms
from bnlab.loans import check_loans, count_loans
from bnlab.modes import RandomStream
from bnlab.module_state import ModuleState, forward_hooks
from bnlab.moments import Moments, Partial
from bnlab.statistics import load


class _Reached(BaseException):
    """Ends a forward pass at the layer that is being measured."""


def measure_layerwise(job: Job, source: Source) -> dict[str, Moments]:
    """Run everything up to the first unfinished layer, again and again."""
    if job.ranks.size > 1 or job.by_image:
        raise ValueError(f"{CALLER}: strategy='layerwise' has no group and no standard errors; use 'breadth'")
    found: dict[str, Moments] = {}
    targets, hooks = job.targets, forward_hooks(job.model)
    loans = count_loans() + 1  # each forward borrows the model itself
    arrived: dict[str, list[Moments]] = {}
    samples: dict[str, Sample] = {}
    visited: set[str] = set()

    def stop(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = strip_transforms(layer_input(args, kwargs))
            if module is not targets[name] or (isinstance(x, Tensor) and not x.numel()):
                return
            if name in visited:
                raise ValueError(
                    f"{CALLER}: layer {name!r} is reached several times in one forward; "
                    "which only strategy='breadth' can measure; or leave it out with layers=[...]"
                )
            check_loans(loans, name, CALLER)
            visited.add(name)
            if name not in found:
                check_input(name, targets[name], x, CALLER)
                arrived.setdefault(name, []).append(Moments.of(x))
                raise _Reached

        return hook

    for name, layer in targets.items():
        job.hooks.append(layer.register_forward_pre_hook(stop(name), with_kwargs=True))
        set_buffers_aside(layer)
    batches = list(map(keep_batch, source))
    job.cost.batches = len(batches)
    random, state = RandomStream(job.device), ModuleState(job.model, hooks)
    while True:
        arrived.clear()
        job.cost.forwards += len(batches)
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
        found[name], samples[name] = reduce(Moments.merge, moments), Sample(None, Partial.of(moments[0]), exact=True)
        check_moments(name, found[name], targets[name])
        load(targets[name], found[name])
        job.bar.update()
    if batches:
        visited.clear()
        check_first_batch(job, found, samples, batches[0], random, state)
    return found


def check_first_batch(
    job: Job,
    found: dict[str, Moments],
    samples: dict[str, Sample],
    batch: Any,
    random: RandomStream,
    state: ModuleState,
) -> None:
    """Evaluate the first batch once more, without the measurement's hooks."""
    for hook in job.hooks:
        hook.remove()
    inspection = Inspection(job.model, job.targets, found, lambda images: _forward_once(job, images, 0, random, state))
    job.check = inspection.check(batch, samples)


def _forward_once(job: Job, batch: Any, index: int, random: RandomStream, state: ModuleState) -> None:
    """One forward that leaves nothing behind, with the batch's own random stream."""
    with borrowed(job.model), torch.no_grad(), job.weights.restored(), state.undone():
        random.apply(random.begin(index))
        job.forward(job.model, copy_batch(batch, job.device))
