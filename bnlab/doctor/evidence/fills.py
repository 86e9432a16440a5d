"""What a model would average of tensors that are no images: zeros, ones, and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.observing import observe_batches
from bnlab.doctor.undo import change_images
from bnlab.exact.task import Task
from bnlab.model.batches import take_images

_IMAGES = 32  # whose noise is small beside that of the few forwards that were averaged


def _draw_normal(images: Tensor) -> Tensor:
    # A separate generator on the CPU gives the same noise on each device and leaves the global one alone.
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(images)


def _draw_uniform(images: Tensor) -> Tensor:
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(images)


_FILLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "normal noise": _draw_normal,
    "uniform noise": _draw_uniform,
}
"""What tools feed a model to trace it, to count its operations, or to find its shapes."""


def add_fills(case: Case, task: Task) -> Case:
    """Add to a case what its layers would average of no images; nothing where all averages fit, or are not finite."""
    if case.is_broken or not any(case.clearly_differs(name) for name in case.seen):
        return case
    fills = {}
    for what, fill in _FILLS.items():
        averages = _average(task.on([take_images(task.data[0], _IMAGES)]), fill)
        # One share of a fill has to explain all layers, so a fill has to reach all of them.
        if all(name in averages for name in case.seen):
            fills[what] = averages
    return replace(case, fills=fills)


def _average(task: Task, fill: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Measure mean and unbiased variance [2, C] of a forward in train mode; nothing where the model takes no such."""
    try:
        with ExitStack() as stack:
            change_images(fill)(task.root, stack)
            view = observe_batches(task)
    except Exception:  # a model that takes no other images may raise anything
        return {}
    averages = {}
    for name, layer_view in view.layers.items():
        moments = layer_view.pooled
        # As train mode averages it: running variances have the divisor n − 1.
        unbiased = moments.var * moments.count / max(1, moments.count - 1)
        averages[name] = torch.stack((moments.mean, unbiased))
    return averages
