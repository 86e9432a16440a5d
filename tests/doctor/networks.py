"""Small convolutional networks to examine, and the coloured images that they learn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose, population_statistics
from bnlab.doctor.findings import Finding
from bnlab.model.layers import BatchNorm

Batch = tuple[Tensor, Tensor]
CLASSES = 4
_TINT = torch.tensor([1.0, 0.7, 0.4]).view(3, 1, 1)
_SHADE = torch.tensor([0.4, 0.2, 0.0]).view(3, 1, 1)


def draw_images(count: int, seed: int) -> Batch:
    """Draw images [N, 3, 8, 8] and labels: noisy patterns of four classes, warm in colour and of different contrast."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(100))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    return contrast * patterns[labels] * _TINT + _SHADE + 1.5 * noise, labels


def split(images: Tensor, labels: Tensor, size: int = 32) -> list[Batch]:
    """Split images into batches."""
    return list(zip(images.split(size), labels.split(size), strict=True))


def make_batches(count: int, size: int = 32, seed: int = 1) -> list[Batch]:
    """Make batches of labelled images, which training has not seen unless the seed is below 0."""
    return split(*draw_images(count * size, seed), size)


def list_images(batches: Sequence[Batch]) -> list[Tensor]:
    """Leave out the labels."""
    return [images for images, _ in batches]


def change_images(batches: Sequence[Batch], change: Callable[[Tensor], Tensor]) -> list[Batch]:
    """Change the images of batches."""
    return [(change(images), labels) for images, labels in batches]


def build_cnn(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """Build three blocks with the batch norms "1", "5" and "9", behind which there may be dropout."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for width in (6, 8, 12):
        stride = 1 if channels == 3 else 2
        conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def train(model: nn.Module, batches: Sequence[Batch], lr: float = 0.05) -> None:
    """Take a step of SGD on each batch while the rate falls to 0; in eval mode afterwards."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for step, (images, labels) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()


@cache
def _train_cnn(seed: int, dropout: float) -> nn.Sequential:
    model = build_cnn(seed, dropout)
    train(model, make_batches(120, seed=-1))
    return model


def make_healthy(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """Make a network that was trained for 120 steps, in eval mode."""
    return copy.deepcopy(_train_cnn(seed, dropout))


def make_exact(images: Sequence[Tensor]) -> nn.Sequential:
    """Make a healthy network whose buffers are the exact statistics of these images."""
    model = make_healthy()
    population_statistics(model, images, progress=False).write_to(model)
    return model


def reset(model: nn.Module) -> nn.Module:
    """Put the averages of a network where they start."""
    for name in ("1", "5", "9"):
        get_norm(model, name).reset_running_stats()
    return model


def get_norm(model: nn.Module, name: str) -> BatchNorm:
    """Return a batch norm."""
    layer = model.get_submodule(name)
    assert isinstance(layer, BatchNorm)
    return layer


def get_conv(model: nn.Module, name: str) -> nn.Conv2d:
    """Return a convolution: "0", "4" or "8"."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer


def find(code: str, model: nn.Module, batches: Sequence[Any], **arguments: Any) -> Finding | None:
    """Diagnose a model, and return the finding of a code; None without."""
    found = diagnose(model, batches, progress=False, **arguments).faults
    return next((finding for finding in found if finding.cause.code == code), None)
