"""Exact statistics one layer after the other, each in forward passes of its own: the slow, obvious twin."""

from __future__ import annotations

import contextlib
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import copy_batch, keep_batch
from bnlab.borrowing import borrowed, gradients_set_aside, set_buffers_aside
from bnlab.exact.breadth import CALLER, check_moments
from bnlab.exact.inputs import watch_inputs
from bnlab.exact.inspection import Inspection, Sample
from bnlab.exact.job import Job, Source
from bnlab.loans import count_loans
from bnlab.module_state import ModuleState, list_forward_hooks
from bnlab.moments import Moments, Partial
from bnlab.randomness import RandomStream, list_generators
from bnlab.statistics import write_buffers


class _Reached(BaseException):
    """Ends a forward pass at the layer that is being measured."""


def measure_layerwise(job: Job, source: Source) -> dict[str, Moments]:
    """Run everything up to the first unfinished layer, again and again."""
    if job.ranks.size > 1 or job.by_image:
        raise ValueError(f"{CALLER}: strategy='layerwise' has no group and no standard errors; use 'breadth'")
    found: dict[str, Moments] = {}
    arrived: dict[str, list[Moments]] = {}
    visited: set[str] = set()  # in one forward

    def stop(name: str, x: Tensor) -> None:
        if name in visited:
            raise ValueError(
                f"{CALLER}: layer {name!r} is reached several times in one forward, "
                "which only strategy='breadth' can measure; or leave it out with layers=[...]"
            )
        visited.add(name)
        if name not in found:
            arrived.setdefault(name, []).append(Moments.of(x))
            raise _Reached

    batches = list(map(keep_batch, source))  # first, as they may be made with the model
    hooks, samples = list_forward_hooks(job.model), dict[str, Sample]()
    # Each forward borrows the model itself.
    job.hooks += watch_inputs(job.targets, stop, CALLER, loans=count_loans() + 1, elsewhere=job.elsewhere)
    for layer in job.targets.values():
        set_buffers_aside(layer)
    job.cost.batches = len(batches)
    random, state = RandomStream(job.device, list_generators(job.model.modules())), ModuleState(job.model, hooks)
    while True:
        arrived.clear()
        job.cost.forwards += len(batches)
        for index, batch in enumerate(batches):
            visited.clear()
            with contextlib.suppress(_Reached):
                _forward_once(job, batch, index, random, state)
        if not arrived:
            break
        name, moments = _check_one_layer(arrived)
        found[name], samples[name] = reduce(Moments.merge, moments), Sample(None, Partial.of(moments[0]), exact=True)
        check_moments(name, found[name], job.targets[name])
        write_buffers(job.targets[name], found[name])
        job.bar.update()
    if batches:
        check_first_batch(job, found, samples, batches[0], random, state)
    return found


def _check_one_layer(arrived: dict[str, list[Moments]]) -> tuple[str, list[Moments]]:
    """The layer that all batches have reached; ValueError if there are several."""
    if len(arrived) > 1:
        raise ValueError(
            f"{CALLER}: batches reach {' and '.join(map(repr, arrived))} first; "
            "skipped layers need strategy='breadth'; or leave them out with layers=[...]"
        )
    ((name, moments),) = arrived.items()
    return name, moments


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

    def evaluate(images: Any) -> None:
        _forward_once(job, images, 0, random, state)

    check = Inspection(job.model, job.targets, found, evaluate, job.others).check(batch, samples)
    job.check = check.name_bypassed(job.elsewhere)


def _forward_once(job: Job, batch: Any, index: int, random: RandomStream, state: ModuleState) -> None:
    """One forward that leaves nothing behind, with the batch's own random stream."""
    with (
        borrowed(job.model),
        gradients_set_aside(job.model),
        torch.no_grad(),
        job.weights.restored(unseen=True),
        state.undone(),
    ):
        random.apply(random.begin(index))
        job.forward(job.model, copy_batch(batch, job.device))
