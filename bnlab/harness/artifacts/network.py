"""A network, built from the settings of its model and its norm."""

from __future__ import annotations

import torch
from torch import nn

from bnlab.harness.artifacts.models import InputShape, Model
from bnlab.harness.artifacts.norms import Batch, Norm, NormBuilder
from bnlab.harness.artifacts.seeding import seed_generators


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
