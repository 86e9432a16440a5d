"""One pass in which every layer normalizes with its batch's statistics: what one-pass tools compute."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.batches import copy_batch, keep_batch
from bnlab.borrowing import KeptTensors, set_buffers_aside
from bnlab.exact.breadth import CALLER, check_moments
from bnlab.exact.inputs import watch_inputs
from bnlab.exact.job import Job, Source
from bnlab.exact.layerwise import check_first_batch
from bnlab.fresh import FreshForwards, find_difference
from bnlab.layer_calls import LayerCalls
from bnlab.layers import join_names, set_train_mode
from bnlab.loans import count_loans
from bnlab.module_state import list_forward_hooks
from bnlab.moments import Moments, Partial, read
from bnlab.randomness import RandomStream, list_generators


class _Seen(NamedTuple):
    """A call of a layer.

    Attributes:
        name: of the layer.
        moments: of its input.
        images: the same by image, where that is wanted.
    """

    name: str
    moments: Moments
    images: Partial | None


def measure_batch_upstream(job: Job, source: Source) -> dict[str, Moments]:
    """One pass in which every measured layer normalizes with its batch's statistics; moments are pooled."""
    found: dict[str, Moments] = {}
    calls: list[_Seen] = []  # of the forward that runs

    def look(name: str, x: Tensor) -> None:
        if use.between:
            raise ValueError(
                f"{CALLER}: layer {name!r} is called while the next batch is made, where it has the statistics of its "
                "batch; make all batches before, as a list, or use upstream='population'"
            )
        if not use.is_forward:
            return
        if x.numel() == x.shape[1]:
            raise ValueError(
                f"{CALLER}: a batch has one value per channel at layer {name!r} and so no variance to normalize "
                "with; use larger batches or upstream='population'"
            )
        moments = Moments.of(x)
        calls.append(_Seen(name, moments, read(x, moments.mean, by_image=True) if job.by_image else None))

    hooks = list_forward_hooks(job.model)
    job.hooks += watch_inputs(job.targets, look, CALLER, loans=count_loans(), elsewhere=job.elsewhere)
    use = _enter_train_mode(job)
    forwards = FreshForwards(job.model, hooks, KeptTensors(job.model.parameters()))
    averages = KeptTensors(buffer for layer in job.targets.values() for buffer in layer.buffers(recurse=False))
    random = RandomStream(job.device, list_generators(job.model.modules()), job.ranks.own)
    first: list[tuple[Any, list[_Seen]]] = []  # the first batch, and what the layers were given

    def run(index: int, batch: Any) -> list[_Seen]:
        """What the layers are given in the forward of a batch."""
        calls.clear()
        averages.take_up()  # what who makes a batch writes stays
        own = random.capture()  # the caller's batches draw from the caller's stream
        with torch.no_grad(), forwards.one(), averages.restored(unseen=True), use.watched():
            random.apply(random.begin(index))
            job.forward(job.model, copy_batch(batch, job.device))
        random.apply(own)
        _check_use(use)
        return list(calls)

    def work() -> None:
        for index, batch in enumerate(source):
            seen = run(index, batch)
            first.extend([] if first else [(keep_batch(batch), seen)])
            for name, moments, images in seen:
                found[name] = found[name].merge(moments) if name in found else moments
                if images is not None:
                    job.parts.setdefault(name, []).append(images)

    job.ranks.together(work)
    job.cost.batches = job.cost.forwards = source.count
    merged = _merge_ranks(job, found)
    if first and found:
        ((batch, seen),) = first
        again = seen
        with contextlib.suppress(Exception):  # whatever a forward raises that cannot be repeated
            again = run(0, batch)
        for layer in job.targets.values():
            layer.eval()
        check_first_batch(job, found, {}, batch, random, forwards.state)
        assert job.check is not None
        # A model that has been changed between batches gives something else with good reason.
        leaking = find_difference([call[:2] for call in seen], [call[:2] for call in again])
        transformed = tuple(dict.fromkeys([*job.check.transformed, *use.others]))
        job.check = replace(job.check, transformed=transformed, leaking=None if forwards.changed else leaking)
    return merged


def _enter_train_mode(job: Job) -> LayerCalls:
    """Put the measured layers into train mode, with buffers of their own."""
    for layer in job.targets.values():
        set_buffers_aside(layer)
    set_train_mode(job.targets.values())
    return LayerCalls(job.targets)


def _check_use(use: LayerCalls) -> None:
    if use.running:
        raise ValueError(
            f"{CALLER}: the running statistics of {join_names(use.running)} are used, not the batch's: the forward "
            "changes to eval mode, or a forward of the layer's own takes them; leave it out with layers=[...], or use "
            "upstream='population'"
        )


def _merge_ranks(job: Job, found: dict[str, Moments]) -> dict[str, Moments]:
    """What all ranks have found, in the order of the first rank that has seen a layer."""
    merged: dict[str, Moments] = {}
    for name in dict.fromkeys(name for names in job.ranks.gather(list(found)) for name in names):
        merged[name] = job.ranks.merge(found.get(name, Moments.empty(job.targets[name].num_features)))
        check_moments(name, merged[name], job.targets[name])
        job.bar.update()
    return merged
