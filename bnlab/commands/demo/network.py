"""A small convolutional network, and its training: a second on one thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.commands.demo.patterns import CLASSES
from bnlab.model.borrow import keep_random_state

BATCH_SIZE = 64
_WIDTHS = (8, 16, 16, 32)  # channels of each block
_STRIDES = (1, 2, 1, 2)


def build_network(seed: int = 0) -> nn.Sequential:
    """Build four blocks of convolution, batch norm and ReLU, then a linear layer on the mean over pixels.

    Args:
        seed: of the initial weights.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    with keep_random_state():
        torch.manual_seed(seed)
        for number, (width, stride) in enumerate(zip(_WIDTHS, _STRIDES, strict=True), start=1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            channels = width
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["head"] = nn.Linear(channels, CLASSES)
    return nn.Sequential(layers)


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 160,
    rate: float = 0.1,
    batch_size: int = BATCH_SIZE,
    is_constant: bool = False,
    seed: int = 0,
    after_step: Callable[[int], object] | None = None,
) -> None:
    """Train a model, which is in eval mode afterwards, with SGD, momentum 0.9 and weight decay 0.0005.

    Args:
        model: returns logits [B, classes].
        images: [N, ...].
        labels: [N].
        steps: updates of the weights.
        rate: the largest learning rate.
        batch_size: images in a batch.
        is_constant: whether the learning rate stays; else it rises and falls (one-cycle).
        seed: of the order of images, and of dropout.
        after_step: called after each update with its number, from 1 on.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)
    schedule = None if is_constant else torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)

    model.train()
    with keep_random_state():
        torch.manual_seed(seed)
        for step, chosen in enumerate(choose_images(len(images), steps, batch_size), start=1):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if after_step is not None:
                after_step(step)
    model.eval()


def choose_images(images: int, steps: int, batch_size: int) -> Iterator[Tensor]:
    """Choose the images [B] of each step, in a new random order in each epoch; the last, smaller batch is left out."""
    chosen = 0
    while True:
        for batch in torch.randperm(images).split(batch_size):
            if chosen == steps:
                return
            if len(batch) == batch_size:
                yield batch
                chosen += 1
