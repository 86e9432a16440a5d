"""Exact population statistics against one-pass tools and against a plain forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from benchmarks.timing import Result, alternate, evaluate
from bnlab import Statistics, population_statistics, running_statistics
from bnlab.harness.artifacts.models import build_model
from bnlab.harness.artifacts.models.resnet import Resnet
from bnlab.harness.artifacts.vision import torchvision
from bnlab.moments import compare_moments

ROUNDS, THREADS = 5, 1
_IMAGES, _BATCH = 1000, 64
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_LIMITS = {"channels_last": 1.15, "contiguous": 0.85}


def results() -> list[Result]:
    found = []
    for depth in (20, 56, 110):
        model = build_model(Resnet(depth=depth), channels=3, image_size=32, classes=10, seed=0)
        for kind, limit in _LIMITS.items():
            found += _compare(f"resnet-{depth}, 32×32, {kind}", model, 32, _LAYOUTS[kind], limit)
    for kind, layout in _LAYOUTS.items():
        found += _compare(f"resnet-18, 64×64, {kind}", torchvision().models.resnet18(), 64, layout, 1.05)
    return found


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
    errors = {"exact": _error(reference, found["exact"])}
    errors |= {peer: _error(reference, running_statistics(peers[peer])) for peer in peers}
    notes = {"exact": "error", "fvcore": "fvcore's", "torch": "torch's"}
    told = {side: f"{word} {_show(errors[side])}" for side, word in notes.items()}
    return [
        Result(what, "exact", median["exact"], "fvcore", median["fvcore"], limit, told["exact"]),
        Result(what, "exact", median["exact"], "update_bn", median["torch"], None, told["torch"]),
        Result(what, "exact", median["exact"], "one forward", median["forward"], None, told["fvcore"]),
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


def _error(reference: Statistics, found: Statistics) -> tuple[float, float]:
    """Largest error over layers and channels: of the mean in σ, of the variance relative."""
    means, variances = zip(*(compare_moments(r, found[name]) for name, r in reference.items()), strict=True)
    return max(means), max(variances)


def _show(error: tuple[float, float]) -> str:
    return f"{error[0]:.0e} σ, {error[1]:.0e} var"
