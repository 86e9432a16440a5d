"""Networks and random images that several parts measure, and the plain evaluation that they are compared with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnlab.common.vision import torchvision
from bnlab.harness.artifacts.models import Resnet
from bnlab.harness.artifacts.network import build_model

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def build_resnet(depth: int = 20, *, seed: int = 0) -> nn.Module:
    """Build a ResNet for images of 32×32, with random weights, in eval mode."""
    return build_model(Resnet(depth=depth), channels=3, image_size=32, classes=10, seed=seed).eval()


def build_imagenet_resnet(depth: int) -> nn.Module:
    """Build torchvision's ResNet for ImageNet, with random weights, in eval mode."""
    model: nn.Module = getattr(torchvision().models, f"resnet{depth}")()
    return model.eval()


def build_narrow_resnet() -> nn.Module:
    """Build torchvision's ResNet-50 with a quarter of the channels between its blocks' convolutions, in eval mode."""
    resnet = torchvision().models.resnet
    model: nn.Module = resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], width_per_group=16)
    return model.eval()


def draw_images(count: int, size: int, layout: torch.memory_format = torch.channels_last, seed: int = 0) -> Tensor:
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return images.contiguous(memory_format=layout)


@torch.no_grad()
def warm_up(model: nn.Module, batch: Tensor) -> nn.Module:
    """Give the network running statistics that are not 0 and 1, and put it into eval mode."""
    for _ in range(3):
        model.train()(batch)
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Run one plain forward of each batch."""
    for batch in batches:
        model(batch)
