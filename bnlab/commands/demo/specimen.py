"""What is shown: a healthy network with its images, and networks that are broken on purpose."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bnlab.commands.demo.network import BATCH_SIZE, build_network, train
from bnlab.commands.demo.patterns import draw_patterns
from bnlab.commands.demo.store import Networks
from bnlab.model.layers import BatchNorm

Batches: TypeAlias = list[tuple[Any, Tensor]]

NETWORKS = Networks(Path(__file__).with_name("networks"))
"""Trained networks that specimens are, or are made of; `make networks` trains those that are missing."""

_IMAGES = 2048  # to train, and as many to test


@dataclass(frozen=True)
class Specimen:
    """A model with one fault, and what the doctor is given to find it.

    Attributes:
        model: broken on purpose.
        batches: images with labels.
        unspoiled: accuracy without the fault.
        arguments: further ones of `bnlab.diagnose`, by name.
    """

    model: nn.Module
    batches: Batches
    unspoiled: float
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Healthy:
    """A network that is as it should be, and its data. Not to be changed: copy its model.

    Attributes:
        model: a module, trained, in eval mode.
        images: that it was trained on, [N, C, H, W].
        labels: of these, [N].
        batches: other images with their labels, to be tested on.
        accuracy: on these.
    """

    model: Any
    images: Tensor
    labels: Tensor
    batches: Batches
    accuracy: float

    def copy_model(self) -> Any:
        """Copy the model, to be spoiled."""
        return copy.deepcopy(self.model)

    @property
    def training_batches(self) -> Batches:
        """The images that it was trained on, in batches as in training."""
        return split(self.images, self.labels)

    def change_batches(self, change: Callable[[Tensor], Tensor]) -> Batches:
        """Change the images that it is tested on."""
        return [(change(images), labels) for images, labels in self.batches]

    def show(self, model: nn.Module, **arguments: Any) -> Specimen:
        """Show a broken model on the same images; with further arguments of `bnlab.diagnose`."""
        return Specimen(model.eval(), self.batches, self.accuracy, arguments)

    def show_changed(self, change: Callable[[Tensor], Tensor], **arguments: Any) -> Specimen:
        """Show the model as it is on images that are changed; with further arguments of `bnlab.diagnose`."""
        return Specimen(self.copy_model(), self.change_batches(change), self.accuracy, arguments)


Spoil: TypeAlias = Callable[..., Specimen]
"""Makes a specimen of the healthy network; takes a strength as its second argument, if the fault has any."""


@cache
def make_healthy() -> Healthy:
    """Load the healthy network, once in a process, and draw its images."""
    images, labels = draw_patterns(_IMAGES, seed=0)
    model = build_network()
    NETWORKS.recall("healthy", model, partial(train, model, images, labels))
    batches = split(*draw_patterns(_IMAGES, seed=1))
    return Healthy(model, images, labels, batches, measure_accuracy(model, batches))


def list_norms(model: nn.Module) -> list[BatchNorm]:
    """List the batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def reset(model: nn.Module) -> None:
    """Put all averages where they start."""
    for norm in list_norms(model):
        norm.reset_running_stats()


@torch.no_grad()
def average(model: nn.Module, batches: Batches) -> None:
    """Let the buffers of a model average batches in train mode; nothing else is trained."""
    model.train()
    for images, _ in batches:
        model(images)
    model.eval()


@torch.no_grad()
def measure_accuracy(model: nn.Module, batches: Batches) -> float:
    """Measure the share of images that a model names rightly, in the mode that it is in."""
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / sum(labels.numel() for _, labels in batches)


def split(images: Tensor, labels: Tensor, batch_size: int = BATCH_SIZE) -> Batches:
    """Split images and labels into batches, as large as those of training if nothing else is said."""
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
