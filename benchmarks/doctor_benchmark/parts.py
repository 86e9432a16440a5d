"""Images, small networks, their training, and scores without any tool."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.commands.demo.specimen import Batches, list_norms, reset, split
from bnlab.commands.demo.store import Networks
from bnlab.common.digits import load_digits

NETWORKS = Networks(Path(__file__).with_name("networks"))
"""Trained networks of the reports; `python -m benchmarks.doctor_benchmark --train-networks` trains missing ones."""

TRAINING = 1000
_INK = 0.5  # above it a pixel is part of a digit


@cache
def load_images() -> tuple[Tensor, Tensor]:
    """Load the digits [1797, 1, 8, 8], from -1 to 1, and their labels; the first 1,000 are for training."""
    images, labels = load_digits()
    return images / 8 - 1, labels


@cache
def load_scenes() -> tuple[Tensor, Tensor]:
    """Load the digits [1797, 1, 16, 16], from 0 to 1, and a label for each pixel: 0, or a digit plus 1."""
    images, labels = load_images()
    large = F.interpolate((images + 1) / 2, scale_factor=2, mode="bilinear")
    numbers = (labels + 1)[:, None, None].expand(-1, 16, 16)
    masks = torch.where(large[:, 0] > _INK, numbers, torch.zeros_like(numbers))
    return large, masks


def divide(images: Tensor, labels: Tensor, size: int) -> tuple[Batches, Batches]:
    """Divide images into batches for training, and into others."""
    return split(images[:TRAINING], labels[:TRAINING], size), split(images[TRAINING:], labels[TRAINING:], size)


def block(inputs: int, outputs: int, kernel: int = 3, momentum: float = 0.1) -> nn.Sequential:
    """Build a convolution, a batch norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, momentum=momentum),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """Two convolutions with batch norms, and the input added to what they return."""

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.first = block(width, width, momentum=momentum)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(self.first(x))))


def build_resnet(seed: int, width: int = 12, momentum: float = 0.1) -> nn.Sequential:
    """Build a residual network of seven batch norms for the digits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        block(1, width, momentum=momentum),
        Residual(width, momentum),
        Residual(width, momentum),
        nn.MaxPool2d(2),
        Residual(width, momentum),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


class Dense(nn.Module):
    """Three blocks, each of which is given all that those before it return."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = block(1, width)
        self.blocks = nn.ModuleList([block(width * number, width) for number in (1, 2, 3)])
        self.norm = nn.BatchNorm2d(4 * width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for each in self.blocks:
            x = torch.cat([x, each(x)], 1)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


class UNet(nn.Module):
    """Two levels, joined by a skip connection; logits for each pixel."""

    def __init__(self, classes: int = 11, width: int = 12) -> None:
        super().__init__()
        self.down = nn.Sequential(block(1, width), block(width, width))
        self.bottom = nn.Sequential(
            nn.MaxPool2d(2), block(width, 2 * width), nn.MaxPool2d(2), block(2 * width, 2 * width)
        )
        self.up = nn.Sequential(block(3 * width, width), block(width, width))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.down(x)
        deep = F.interpolate(self.bottom(kept), scale_factor=4)
        return self.head(self.up(torch.cat([kept, deep], 1)))


class PyramidNet(nn.Module):
    """A backbone whose features are averaged over 1, 2 by 2 and 4 by 4 parts of an image, and joined with these."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(1, width), block(width, width), nn.MaxPool2d(2), block(width, 2 * width))
        self.parts = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(bins), block(2 * width, width, kernel=1)) for bins in (1, 2, 4)]
        )
        self.joined = block(5 * width, 2 * width)
        self.head = nn.Conv2d(2 * width, 11, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        parts = [F.interpolate(part(features), size=features.shape[-2:]) for part in self.parts]
        return F.interpolate(self.head(self.joined(torch.cat([features, *parts], 1))), scale_factor=2)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    size: int = 32,
    rate: float = 0.05,
    falls: bool = True,
    seed: int = 0,
    after_step: Callable[[], object] | None = None,
) -> None:
    """Train with SGD in train mode, at a rate that falls to 0 or stays; in eval mode afterwards."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(images) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps if falls else 1.0)

    model.train()
    torch.manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(size):
            # The schedule counts full batches only: with further steps its rate would fall below 0.
            if len(chosen) < size:
                continue
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
            if after_step is not None:
                after_step()
    model.eval()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move the parameters of an average of weights towards a model's; its buffers stay."""
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, share)


Score = Callable[[nn.Module, Sequence[Any]], float]


@torch.no_grad()
def score(model: nn.Module, batches: Iterable[Any]) -> float:
    """Measure the share of labels that a model names as it is; where each pixel has one, those above 0 count."""
    right = total = 0
    for images, labels in batches:
        hits = model(images).argmax(1) == labels
        counted = labels > 0 if labels.ndim > 1 else torch.ones_like(hits)
        right += int((hits & counted).sum())
        total += int(counted.sum())
    return right / total


@torch.no_grad()
def average_again(model: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """Copy a model, with the plain mean of these batches' statistics in the place of its averages."""
    renewed = copy.deepcopy(model)
    reset(renewed)
    for norm in list_norms(renewed):
        # Without a momentum PyTorch takes the plain mean of all batches.
        norm.momentum = None
    renewed.train()
    for batch in batches:
        renewed(batch[0] if isinstance(batch, tuple) else batch)
    return renewed.eval()


def measure(
    model: nn.Module, batches: Sequence[Any], training: Sequence[Any], measure_score: Score = score
) -> dict[str, float]:
    """Score a model as it is, by each batch's own statistics, and under averages that are taken again in training."""
    return {
        # On copies, because a forward in train mode moves the averages.
        "as it is": measure_score(copy.deepcopy(model), batches),
        "by each batch": measure_score(copy.deepcopy(model).train(), batches),
        "averaged again": measure_score(average_again(model, training), batches),
    }
