"""How the time of exact statistics grows with depth, images and the memory limit, against one forward pass."""

from __future__ import annotations

import torch

from benchmarks.timing import Result, alternate
from bnlab import population_statistics
from bnlab.harness.artifacts.models import ModelConfig, build_model
from bnlab.memory import LiveBytes

ROUNDS = 5


def results() -> list[Result]:
    return [*_depth(), *_images(), *_memory()]


def _model(depth: int) -> torch.nn.Module:
    return build_model(ModelConfig("resnet", depth, 16), channels=3, image_size=32, classes=10, seed=0).eval()


def _batches(images: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(images, 3, 32, 32, generator=generator)
    return list(data.contiguous(memory_format=torch.channels_last).split(32))


@torch.no_grad()
def _forward(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        model(batch)


def _depth() -> list[Result]:
    found, batches = [], _batches(256)
    for depth in (8, 14, 20, 32, 44, 56):
        model = _model(depth)
        sides = {
            "breadth": lambda m=model: population_statistics(m, batches),
            "layerwise": lambda m=model: population_statistics(m, batches, strategy="layerwise"),
            "forward": lambda m=model: _forward(m, batches),
        }
        median = alternate(sides, ROUNDS)
        for side in ("breadth", "layerwise"):
            note = f"{depth - 1} layers" + (f": (L+1)/2 = {depth / 2:g}" if side == "layerwise" else "")
            found.append(
                Result(f"resnet-{depth}, 256 images", side, median[side], "one forward", median["forward"], None, note)
            )
    return found


def _images() -> list[Result]:
    model, found = _model(20), []
    for images in (256, 1024, 4096):
        batches = _batches(images)
        sides = {
            "exact": lambda b=batches: population_statistics(model, b),
            "forward": lambda b=batches: _forward(model, b),
        }
        median = alternate(sides, ROUNDS)
        found.append(
            Result(f"resnet-20, {images:,} images", "breadth", median["exact"], "one forward", median["forward"])
        )
    return found


def _memory() -> list[Result]:
    model, batches, found = _model(20), _batches(1024), []
    with LiveBytes() as live:
        population_statistics(model, batches)
    limits = {f"1/{k}": live.peak // k for k in (2, 4, 8, 12)}
    sides = {
        share: lambda limit=limit: population_statistics(model, batches, memory=limit)
        for share, limit in limits.items()
    }
    sides["forward"] = lambda: _forward(model, batches)
    median = alternate(sides, ROUNDS)
    for share, limit in limits.items():
        cost = population_statistics(model, batches, memory=limit).cost
        note = f"limit {limit / 2**20:.0f} MiB, {cost.forwards / cost.batches:.1f} forwards begun per batch"
        found.append(
            Result(
                f"resnet-20, {share} of the memory",
                "breadth",
                median[share],
                "one forward",
                median["forward"],
                None,
                note,
            )
        )
    return found
