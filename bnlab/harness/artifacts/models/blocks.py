"""Building blocks of our networks."""

from __future__ import annotations

from torch import nn

from bnlab.harness.artifacts.norms import NormBuilder


def build_conv(
    norm: NormBuilder, channels: int, width: int, stride: int = 1, number: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Build a 3×3 convolution and the norm of this number; where that adds no shift, the convolution has a bias."""
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=not norm.has_shift)
    return conv, norm.build(width, number)


def initialize(model: nn.Module, norm: NormBuilder) -> nn.Module:
    """Draw the convolutions' weights after He et al. (2015); where no norm sets the scale, the linear layers' too.

    Biases are 0 there. A norm makes up for the scale of the weights before it. Without one it has to be right in every
    layer.
    """
    kinds: tuple[type[nn.Conv2d | nn.Linear], ...] = (nn.Conv2d,)
    if not norm.sets_scale:
        kinds = (nn.Conv2d, nn.Linear)
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
