"""Exact population statistics against one-pass tools and against a plain forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn

from benchmarks.networks import LAYOUTS, build_imagenet_resnet, build_resnet, draw_images, evaluate, warm_up
from benchmarks.timing import Result, alternate
from bnlab import Statistics, population_statistics, running_statistics
from bnlab.moments import compare_moments

ROUNDS, THREADS = 5, 1
_IMAGES, _BATCH = 1000, 64
_LIMITS = {"channels_last": 1.15, "contiguous": 0.85}


def measure() -> Iterator[Result]:
    for depth in (20, 56, 110):
        for layout, limit in _LIMITS.items():
            yield from _compare(f"resnet-{depth}, 32×32, {layout}", build_resnet(depth), 32, layout, limit)
    for layout in LAYOUTS:
        yield from _compare(f"resnet-18, 64×64, {layout}", build_imagenet_resnet(18), 64, layout, 1.05)


def _compare(what: str, network: nn.Module, size: int, layout: str, limit: float) -> Iterator[Result]:
    images = draw_images(_IMAGES, size, LAYOUTS[layout])
    batches = list(images.split(_BATCH))
    model = warm_up(network, images[:_BATCH])
    model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]  # torch declares no such way
    of_fvcore = copy.deepcopy(model).train()
    of_torch = copy.deepcopy(model).train()
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: population_statistics(model, batches),
        "fvcore": lambda: update_bn_stats(of_fvcore, batches, len(batches), progress=None),
        "update_bn": lambda: torch.optim.swa_utils.update_bn(batches, of_torch),
        "one forward": lambda: evaluate(model, batches),
    }
    timed = alternate(what, ROUNDS, sides)

    # In float64 (tests hold it to a forward pass of all images).
    reference = population_statistics(copy.deepcopy(model).double(), list(images.double().split(256)))
    error = _describe_error(reference, population_statistics(model, batches))
    yield timed.compare("exact", "fvcore", limit, f"error {error}")
    error = _describe_error(reference, running_statistics(of_torch))
    yield timed.compare("exact", "update_bn", note=f"torch's {error}")
    error = _describe_error(reference, running_statistics(of_fvcore))
    yield timed.compare("exact", "one forward", note=f"fvcore's {error}")


def _describe_error(reference: Statistics, measured: Statistics) -> str:
    """Describe the largest error over layers and channels: of the mean in σ, of the variance relative."""
    errors = [compare_moments(moments, measured[name]) for name, moments in reference.items()]
    of_mean, of_variance = (max(column) for column in zip(*errors, strict=True))
    return f"{of_mean:.0e} σ, {of_variance:.0e} var"
