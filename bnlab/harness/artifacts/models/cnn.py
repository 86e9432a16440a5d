"""model=cnn and model=plain"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bnlab.harness.artifacts.models.base import Inputs, Layered
from bnlab.harness.artifacts.models.blocks import build_conv, initialize
from bnlab.harness.artifacts.norms import NormBuilder
from bnlab.harness.components import add_choice, component, setting


@component
@dataclass(unsafe_hash=True)
class Cnn(Layered):
    """Blocks conv3×3-norm-ReLU; after each pool the width doubles; the mean over pixels feeds a linear head."""

    name: str = "cnn"
    depth: int = setting(3, "blocks", at_least=1)
    width: int = setting(32, "channels of the first block", at_least=1)
    pool_every: int = setting(
        1, "blocks after which a pool halves the size and doubles the width, while 4 pixels are left", at_least=1
    )

    def build(self, inputs: Inputs, norm: NormBuilder) -> nn.Module:
        layers: list[nn.Module] = []
        channels = inputs.channels
        image_size = inputs.image_size
        width = self.width
        for block in range(1, self.depth + 1):
            layers += build_conv(norm, channels, width, number=block)
            layers.append(nn.ReLU(inplace=True))
            channels = width
            if block % self.pool_every == 0 and image_size >= 4:
                layers.append(nn.MaxPool2d(2))
                image_size //= 2
                width *= 2

        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, inputs.classes)]
        network = nn.Sequential(*layers, *head)
        return initialize(network, norm)


add_choice("plain", Cnn(depth=16, width=16, pool_every=6))
