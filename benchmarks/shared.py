"""Layers that are called several times in a forward: how many passes over the data their statistics take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.networks import build_imagenet_resnet, draw_images, evaluate
from benchmarks.timing import Result, alternate
from bnlab import population_statistics

ROUNDS = 5


def measure() -> Iterator[Result]:
    resnet = build_imagenet_resnet(18)
    blocks = [_build_block() for _ in range(12)]
    yield _compare("Siamese resnet-18, 32×32", Siamese(resnet), 32)
    yield _compare("Siamese, 12 layers", Siamese(nn.Sequential(*blocks)), 16)
    yield _compare("12 layers in 4 chunks each", Chunked(12, 4), 16)


def _compare(name: str, model: nn.Module, size: int) -> Result:
    model.eval()
    batches = list(draw_images(256, size).split(32))
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: population_statistics(model, batches),
        "one forward": lambda: evaluate(model, batches),
    }
    timed = alternate(name, ROUNDS, sides)

    cost = population_statistics(model, batches).cost
    assert cost is not None
    return timed.compare("exact", "one forward", note=f"{cost.passes} passes")


def _build_block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())


class Siamese(nn.Module):
    """One network for an image and its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(x), self.network(x.flip(-1) / 2)


class Chunked(nn.Module):
    """Each layer normalizes its batch in pieces, one after the other."""

    def __init__(self, depth: int, pieces: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_build_block() for _ in range(depth))
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.cat([block(piece) for piece in x.chunk(self.pieces)])
        return x
