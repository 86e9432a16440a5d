"""model=mlp: fully connected layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bnlab.harness.artifacts.models.base import Inputs, Layered
from bnlab.harness.artifacts.models.blocks import initialize
from bnlab.harness.artifacts.norms import NormBuilder
from bnlab.harness.components import component, setting


@component
@dataclass(unsafe_hash=True)
class Mlp(Layered):
    """Hidden layers of linear, norm and ReLU on all pixels of an image, then a linear layer to the classes."""

    has_maps: ClassVar[bool] = False
    name: str = "mlp"
    depth: int = setting(2, "hidden layers", at_least=1)
    width: int = setting(256, "units of a hidden layer", at_least=1)

    def build(self, inputs: Inputs, norm: NormBuilder) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        features = inputs.channels * inputs.image_size**2
        has_bias = not norm.has_shift
        for number in range(1, self.depth + 1):
            layers += [
                nn.Linear(features, self.width, bias=has_bias),
                norm.build(self.width, number),
                nn.ReLU(inplace=True),
            ]
            features = self.width

        head = nn.Linear(features, inputs.classes)
        layers.append(head)
        network = nn.Sequential(*layers)
        return initialize(network, norm)
