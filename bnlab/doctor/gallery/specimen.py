"""What a gallery shows: the healthy network, and faults that spoil it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bnlab.doctor.gallery.network import BATCH_SIZE, build_network, train
from bnlab.doctor.gallery.patterns import draw_patterns
from bnlab.doctor.gallery.store import History, Networks
from bnlab.model.layers import get_running_buffers
from bnlab.recording.block import record
from bnlab.recording.trace import MomentTrace

Batches: TypeAlias = list[tuple[Any, Tensor]]

NETWORKS = Networks(Path(__file__).with_name("networks"))
"""Trained networks that specimens are, or are made of; `make networks` trains those that are missing."""

_IMAGES = 2048  # to train, and as many to test
_KEPT_STEP = 128  # of 160


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
        before: state of the model after a part of its training; empty if none was kept.
        trace: what was recorded of all of it; None if nothing was.
    """

    model: Any
    images: Tensor
    labels: Tensor
    batches: Batches
    accuracy: float
    before: Mapping[str, Tensor]
    trace: MomentTrace | None

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


Spoil: TypeAlias = Callable[..., Specimen]
"""Makes a specimen of the healthy network; takes a strength as its second argument, if the fault has any."""


@cache
def make_healthy() -> Healthy:
    """Load the healthy network, once in a process, and draw its images."""
    images, labels = draw_patterns(_IMAGES, seed=0)
    model = build_network()

    def train_and_record() -> History:
        before: dict[str, Tensor] = {}

        def keep_state(step: int) -> None:
            if step == _KEPT_STEP:
                before.update(copy.deepcopy(model.state_dict()))

        with record(model) as trace:
            train(model, images, labels, after_step=keep_state)
        return History(before, trace)

    history = NETWORKS.recall("healthy", model, train_and_record)
    batches = split(*draw_patterns(_IMAGES, seed=1))
    accuracy = measure_accuracy(model, batches)
    return Healthy(model, images, labels, batches, accuracy, history.before, history.trace)


class Wrapped(nn.Module):
    """A network that is called otherwise than by its own forward: by `call`, with the network and a batch."""

    def __init__(self, network: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, batch: Tensor) -> Tensor:
        return self.call(self.network, batch)


def list_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """List the batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def list_averages(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """List running mean and variance of the batch norms of a model."""
    return [get_running_buffers(norm) for norm in list_norms(model)]


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of all batch norms of a model."""
    for norm in list_norms(model):
        norm.momentum = momentum


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
