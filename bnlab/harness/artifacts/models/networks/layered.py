"""Networks of bnlab's own layers, whose norm can be chosen: a small conv net, an MLP, ResNets for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from bnlab.harness.artifacts.models.base import InputShape
    from bnlab.harness.artifacts.norms import NormBuilder


def build_cnn(inputs: InputShape, norm: NormBuilder, *, depth: int, width: int, pool_every: int) -> nn.Module:
    """Build blocks conv3×3-norm-ReLU, with pools between them, and a linear head; see `models.layered.Cnn`."""
    layers: list[nn.Module] = []
    channels = inputs.channels
    image_size = inputs.image_size
    for block in range(1, depth + 1):
        layers += _build_conv(norm, channels, width, number=block)
        layers.append(nn.ReLU(norm.allows_in_place))
        channels = width
        if block % pool_every == 0 and image_size >= 4:
            layers.append(nn.MaxPool2d(2))
            image_size //= 2
            width *= 2
    return _initialize(nn.Sequential(*layers, *_build_head(channels, inputs)), norm)


def build_mlp(inputs: InputShape, norm: NormBuilder, *, depth: int, width: int) -> nn.Module:
    """Build hidden layers of linear, norm and ReLU, and a linear head."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = inputs.channels * inputs.image_size**2
    has_bias = not norm.kind.has_shift
    for number in range(1, depth + 1):
        layers += [
            nn.Linear(features, width, bias=has_bias),
            norm.build(width, number),
            nn.ReLU(norm.allows_in_place),
        ]
        features = width

    head = nn.Linear(features, inputs.classes)
    return _initialize(nn.Sequential(*layers, head), norm)


def build_resnet(inputs: InputShape, norm: NormBuilder, *, depth: int, width: int) -> nn.Module:
    """Build three stages of residual blocks between a convolution and a linear head."""
    layers: list[nn.Module] = [*_build_conv(norm, inputs.channels, width), nn.ReLU(norm.allows_in_place)]
    blocks = (depth - 2) // 6
    channels = width
    for stage_width in (width, 2 * width, 4 * width):
        for _ in range(blocks):
            # Only the first block of a stage widens; behind it the widths are equal.
            layers.append(_Residual(norm, channels, stage_width))
            channels = stage_width
    return _initialize(nn.Sequential(*layers, *_build_head(channels, inputs)), norm)


class _Residual(nn.Module):
    """Two conv3×3-norm around a shortcut without parameters (option A of He et al. 2015, section 4.2).

    Where no norm sets the scale, the convolutions' sum is multiplied by a weight that starts at 0 (SkipInit, De & Smith
    2020): the variance does not double with each block, and a block begins as its shortcut.
    """

    def __init__(self, norm: NormBuilder, channels: int, width: int) -> None:
        super().__init__()
        self.added = width - channels
        self.in_place = norm.allows_in_place
        # Where the width grows, height and width of the maps are halved, as in the paper.
        stride = 2 if self.added else 1
        self.conv1, self.bn1 = _build_conv(norm, channels, width, stride)
        self.conv2, self.bn2 = _build_conv(norm, width, width, number=2)
        self.weight = None
        if not norm.kind.sets_scale:
            self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        # In place where that is allowed: less memory, and fewer passes over it.
        hidden = self.conv1(x)
        hidden = self.bn1(hidden)
        hidden = F.relu(hidden, self.in_place)
        out = self.conv2(hidden)
        out = self.bn2(out)
        if self.weight is not None:
            out = out * self.weight

        shortcut = x
        if self.added:
            every_second_pixel = x[:, :, ::2, ::2]
            shortcut = F.pad(every_second_pixel, (0, 0, 0, 0, 0, self.added))
        out = out.add_(shortcut) if self.in_place else out + shortcut
        return F.relu(out, inplace=True)


def _build_conv(
    norm: NormBuilder, channels: int, width: int, stride: int = 1, number: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Build a 3×3 convolution and the norm of this number; where that adds no shift, the convolution has a bias."""
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=not norm.kind.has_shift)
    return conv, norm.build(width, number)


def _build_head(channels: int, inputs: InputShape) -> list[nn.Module]:
    """Build the layers from maps to logits: the mean over pixels feeds a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, inputs.classes)]


def _initialize(model: nn.Module, norm: NormBuilder) -> nn.Module:
    """Draw the convolutions' weights after He et al. (2015); where no norm sets the scale, the linear layers' too.

    Biases are 0 there. A norm makes up for the scale of the weights before it. Without one it has to be right in every
    layer.
    """
    kinds: tuple[type[nn.Conv2d | nn.Linear], ...] = (nn.Conv2d,)
    if not norm.kind.sets_scale:
        kinds = (nn.Conv2d, nn.Linear)
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
