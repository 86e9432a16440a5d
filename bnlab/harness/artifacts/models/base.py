"""The base of all models, which are settings that build a network, and how a network is built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bnlab.harness.artifacts.norms import Batch, Norm, NormBuilder
from bnlab.harness.artifacts.seeding import seed_generators
from bnlab.harness.components import Component


@dataclass(frozen=True)
class InputShape:
    """The shape of a network's inputs, images [N, channels, image_size, image_size], and its number of classes."""

    channels: int
    image_size: int
    classes: int


@dataclass(unsafe_hash=True)
class Model(Component):
    """A model: the settings of a network. It builds the network that is trained.

    Attributes:
        has_maps: whether its norms are given maps of images, [N, C, H, W]; otherwise units, [N, C].
    """

    group: ClassVar[str] = "model"
    has_maps: ClassVar[bool] = True

    def check(self, norm: Norm) -> None:
        """Raise UserError for a value out of range, or a norm that the network cannot have."""
        raise NotImplementedError

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        """Build the network, in any mode and layout; its weights are drawn from torch's global generator."""
        raise NotImplementedError


def build_model(
    model: Model,
    norm: Norm | None = None,
    *,
    channels: int,
    image_size: int,
    classes: int,
    seed: int,
    steps: int = 1,
) -> nn.Module:
    """Build the network in channels_last and train mode; `steps`, of the training, are for norms that change over it.

    The caller's random state is left as it was.
    """
    norms = NormBuilder(norm or Batch(), of_images=model.has_maps, steps=steps)
    with seed_generators(seed):
        network = model.build(InputShape(channels, image_size, classes), norms)
    network.train()
    # Torch has no such layout for the weights of volumes.
    if all(tensor.dim() < 5 for tensor in [*network.parameters(), *network.buffers()]):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch
    return network
