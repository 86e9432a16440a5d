"""A small network and handwritten digits: the recipes use them in the place of your model and your loader."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.common.digits import load_digits

_images, _labels = load_digits()
# Stored pixels are from 0 to 16, and these are from -1 to 1.
_images = _images / 8 - 1

train_batches = list(zip(_images[:1000].split(100), _labels[:1000].split(100), strict=True))
test_images = _images[1000:]
test_labels = _labels[1000:]


def make_model(seed: int = 0) -> nn.Sequential:
    """Make a network with two batch norms, "1" and "4"."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        # Each convolution takes two pixels off the side of 8: 32 channels of 4 × 4 pixels are left.
        nn.Linear(512, 10),
    )


def train(model: nn.Module, batches: Iterable = train_batches, *, rate: float = 0.05, epochs: int = 1) -> None:
    """Train by SGD with momentum; the learning rate falls from epoch to epoch, towards 0."""
    # The rate is set for each epoch below.
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (1 - epoch / epochs)
        model.train()
        for images, labels in batches:
            take_step(model, optimizer, images, labels)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Update the weights once."""
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


@torch.no_grad()
def test(model: nn.Module, images: Tensor = test_images, labels: Tensor = test_labels) -> float:
    """Measure the share of images that are recognized, in eval mode."""
    guesses = model.eval()(images).argmax(1)
    return (guesses == labels).double().mean().item()
