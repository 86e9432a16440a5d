"""model=mlp"""

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
    """Hidden layers linear-norm-ReLU."""

    has_maps: ClassVar[bool] = False
    name: str = "mlp"
    depth: int = setting(2, "hidden layers", at_least=1)
    width: int = setting(256, "units of a hidden layer", at_least=1)

    def build(self, inputs: Inputs, norm: NormBuilder) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        features = inputs.channels * inputs.image_size**2
        for number in range(1, self.depth + 1):
            linear = nn.Linear(features, self.width, bias=not norm.has_shift)
            layers.append(linear)
            layers.append(norm.build(self.width, number))
            layers.append(nn.ReLU(inplace=True))
            features = self.width

        head = nn.Linear(features, inputs.classes)
        network = nn.Sequential(*layers, head)
        if norm.sets_scale:
            return network
        return initialize(network, norm)
