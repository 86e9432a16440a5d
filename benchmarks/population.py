"""Exact population statistics against one-pass tools and against a plain forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from benchmarks.timing import Result, alternate, evaluate
from bnlab import Statistics, population_statistics, running_statistics
from bnlab.harness.artifacts.models import Resnet, build_model
from bnlab.moments import compare_moments
from bnlab.vision import torchvision

ROUNDS, THREADS = 5, 1
_IMAGES, _BATCH = 1000, 64
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_LIMITS = {"channels_last": 1.15, "contiguous": 0.85}


def results() -> list[Result]:
    rows = []
    for depth in (20, 56, 110):
        model = build_model(Resnet(depth=depth), channels=3, image_size=32, classes=10, seed=0)
        for kind, layout in _LAYOUTS.items():
            rows += _compare(f"resnet-{depth}, 32×32, {kind}", model, 32, layout, _LIMITS[kind])

    for kind, layout in _LAYOUTS.items():
        model = torchvision().models.resnet18()
        rows += _compare(f"resnet-18, 64×64, {kind}", model, 64, layout, 1.05)
    return rows


def _compare(what: str, model: nn.Module, size: int, layout: torch.memory_format, limit: float) -> list[Result]:
    model = _warm_up(model, size).to(memory_format=layout)  # type: ignore[call-overload]  # torch declares no such way
    images = _images(size).contiguous(memory_format=layout)
    batches = list(images.split(_BATCH))
    peers = {"fvcore": copy.deepcopy(model), "torch": copy.deepcopy(model)}
    found: dict[str, Statistics] = {}
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: found.update(exact=population_statistics(model, batches)),
        "fvcore": lambda: update_bn_stats(peers["fvcore"].train(), batches, len(batches), progress=None),
        "torch": lambda: torch.optim.swa_utils.update_bn(batches, peers["torch"].train()),
        "forward": lambda: evaluate(model, batches),
    }
    median = alternate(sides, ROUNDS)

    reference = _float64(model, images)
    own = _describe_error(reference, found["exact"])
    of_fvcore = _describe_error(reference, running_statistics(peers["fvcore"]))
    of_torch = _describe_error(reference, running_statistics(peers["torch"]))
    seconds = median["exact"]
    return [
        Result(what, "exact", seconds, "fvcore", median["fvcore"], limit, f"error {own}"),
        Result(what, "exact", seconds, "update_bn", median["torch"], None, f"torch's {of_torch}"),
        Result(what, "exact", seconds, "one forward", median["forward"], None, f"fvcore's {of_fvcore}"),
    ]


def _warm_up(model: nn.Module, size: int) -> nn.Module:
    """With running statistics that are not 0 and 1, in eval mode."""
    with torch.no_grad():
        for _ in range(3):
            model.train()(_images(size)[:64])
    return model.eval()


def _images(size: int) -> Tensor:
    return torch.randn(_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))


def _float64(model: nn.Module, images: Tensor) -> Statistics:
    """Exact statistics in float64 (tests hold them to a full-batch forward pass)."""
    return population_statistics(copy.deepcopy(model).double(), list(images.double().split(256)))


def _describe_error(reference: Statistics, found: Statistics) -> str:
    """Describe the largest error over layers and channels: of the mean in σ, of the variance relative."""
    mean = 0.0
    variance = 0.0
    for name, moments in reference.items():
        mean_error, variance_error = compare_moments(moments, found[name])
        mean = max(mean, mean_error)
        variance = max(variance, variance_error)
    return f"{mean:.0e} σ, {variance:.0e} var"
