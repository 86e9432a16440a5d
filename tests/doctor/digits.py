"""Small convolutional networks of three batch norms, trained on handwritten digits in three colours.

What a training ends with is loaded from `networks/`, so that no test depends on the processor that it runs on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.commands.demo.network import choose_images
from bnlab.commands.demo.specimen import Batches, split
from bnlab.commands.demo.store import Networks
from bnlab.common.digits import load_digits

NETWORKS = Networks(Path(__file__).with_name("networks"))
"""Trained networks of the doctor's tests; `make networks` trains those that are missing."""

CLASSES = 10
_TRAINING = 797  # of 1,797 images; the others are tested on
_BATCH_SIZE = 64
_STEPS = 144
_RATE = 0.1
_TINT = torch.tensor([1.0, 0.6, 0.3]).view(3, 1, 1)
_SHADE = torch.tensor([0.0, 0.0, 0.5]).view(3, 1, 1)


@cache
def load_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load images [N, 3, 8, 8] and labels for training, then 1,000 for testing; not to be changed."""
    grey, labels = load_digits()
    images = (grey / 8 - 1) * _TINT + _SHADE
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    training = order[:_TRAINING]
    testing = order[_TRAINING:]
    return images[training], labels[training], images[testing], labels[testing]


def make_batches(change: Callable[[Tensor], Tensor] | None = None, size: int = 50, images: int = 1000) -> Batches:
    """Make batches of test images, changed where a change is given."""
    _, _, tested, labels = load_images()
    chosen = tested[:images]
    return split(chosen if change is None else change(chosen), labels[:images], size)


def make_training_batches() -> Batches:
    """Make batches of the training images."""
    images, labels, _, _ = load_images()
    return split(images, labels, _BATCH_SIZE)


def build(seed: int) -> nn.Sequential:
    """Build three blocks with the batch norms "1", "4" and "7", and a linear layer on all that they return."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inside, outside, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 2)):
        conv = nn.Conv2d(inside, outside, 3, stride, padding=1)
        layers += [conv, nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, CLASSES))


def fit(model: nn.Module) -> None:
    """Train on the digits with SGD."""
    images, labels, _, _ = load_images()
    optimizer = torch.optim.SGD(model.parameters(), _RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    model.train()
    torch.manual_seed(0)
    for chosen in choose_images(len(images), _STEPS, _BATCH_SIZE):
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()


@cache
def _load(seed: int) -> nn.Sequential:
    model = build(seed)
    NETWORKS.recall(f"digits {seed}", model, partial(fit, model))
    return model


def make_healthy(seed: int) -> nn.Sequential:
    """Make a trained network of its own, in eval mode; of seed 0, 1, 2 or 3."""
    return copy.deepcopy(_load(seed))
