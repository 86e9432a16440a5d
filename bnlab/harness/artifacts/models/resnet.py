"""model=resnet"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.harness.artifacts.models.base import Inputs, Layered
from bnlab.harness.artifacts.models.blocks import build_conv, initialize
from bnlab.harness.artifacts.norms import Norm, NormBuilder
from bnlab.harness.components import component, setting
from bnlab.harness.errors import UserError


@component
@dataclass(unsafe_hash=True)
class Resnet(Layered):
    """A ResNet for small images (He et al. 2015, section 4.2): three stages of n blocks."""

    name: str = "resnet"
    depth: int = setting(20, "6n+2 layers")
    width: int = setting(16, "channels of the first stage", at_least=1)

    def check(self, norm: Norm) -> None:
        super().check(norm)
        if self.depth < 8 or self.depth % 6 != 2:
            raise UserError(f"model.depth={self.depth}: a resnet has 6n+2 layers: 8, 14, 20, 32, 44, 56, 110")

    def build(self, inputs: Inputs, norm: NormBuilder) -> nn.Module:
        width = self.width
        layers: list[nn.Module] = [*build_conv(norm, inputs.channels, width), nn.ReLU(inplace=True)]
        blocks = (self.depth - 2) // 6
        for stage_width in (self.width, 2 * self.width, 4 * self.width):
            for _ in range(blocks):
                layers.append(_Residual(norm, width, stage_width))
                width = stage_width

        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, inputs.classes)]
        network = nn.Sequential(*layers, *head)
        return initialize(network, norm)


class _Residual(nn.Module):
    """Two conv3×3-norm around a shortcut without parameters (option A of He et al. 2015, section 4.2).

    Where no norm sets the scale, the convolutions' sum is multiplied by a weight that starts at 0 (SkipInit, De & Smith
    2020): the variance does not double with each block, and a block begins as its shortcut.
    """

    def __init__(self, norm: NormBuilder, channels: int, width: int) -> None:
        super().__init__()
        self.added = width - channels
        stride = 2 if self.added else 1
        self.conv1, self.bn1 = build_conv(norm, channels, width, stride)
        self.conv2, self.bn2 = build_conv(norm, width, width, number=2)
        self.weight = None
        if not norm.sets_scale:
            self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        # In place: less memory, and fewer passes over it.
        hidden = self.conv1(x)
        hidden = self.bn1(hidden)
        hidden = F.relu(hidden, inplace=True)
        out = self.conv2(hidden)
        out = self.bn2(out)
        if self.weight is not None:
            out = out * self.weight

        shortcut = x
        if self.added:
            every_second_pixel = x[:, :, ::2, ::2]
            shortcut = F.pad(every_second_pixel, (0, 0, 0, 0, 0, self.added))
        out.add_(shortcut)
        return F.relu(out, inplace=True)
