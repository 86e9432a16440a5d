"""A convolutional network whose weights are rounded to few bits while it is trained."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

FLOAT = 32  # bits of weights that are not rounded


class QuantizedConv2d(nn.Conv2d):
    """A convolution with weights of few bits; the optimizer updates the weights that are not rounded."""

    bits = FLOAT

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if self.bits < FLOAT:
            weight = quantize(weight, self.bits)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def quantize(weight: Tensor, bits: int) -> Tensor:
    """Round a tensor to integers of so many bits times one step size, symmetric about 0.

    The step size is the largest magnitude over the largest integer, 2^(bits-1) - 1. Gradients pass as if nothing were
    rounded (Bengio et al. 2013, straight-through estimator).
    """
    largest = 2 ** (bits - 1) - 1
    step_size = weight.detach().abs().max() / largest
    rounded = (weight / step_size).round() * step_size
    return weight + (rounded - weight).detach()


def build_network(
    channels: int, image_size: int, classes: int, bits: int = FLOAT, depthwise: bool = True, width: int = 32
) -> nn.Module:
    """Build three blocks of a 3x3 and a 1x1 convolution behind a first convolution; each has a norm and a ReLU.

    The first convolution and the linear layer keep their precision. A pool halves the image behind the first
    convolution and the first two blocks.

    Args:
        channels: of the images.
        image_size: pixels of a side; not read.
        classes: number of logits.
        bits: of the blocks' weights; 32: they are not rounded.
        depthwise: whether the 3x3 convolutions have one input channel each.
        width: channels of the first block; the others have two and four times as many.
    """
    layers = [*_normalize(nn.Conv2d(channels, width, 3, padding=1, bias=False)), nn.MaxPool2d(2)]
    inside = width
    for outside in (width, 2 * width, 4 * width):
        groups = inside if depthwise else 1
        spatial = QuantizedConv2d(inside, inside, 3, padding=1, groups=groups, bias=False)
        pointwise = QuantizedConv2d(inside, outside, 1, bias=False)
        for convolution in (spatial, pointwise):
            convolution.bits = bits
            layers += _normalize(convolution)
        layers.append(nn.MaxPool2d(2) if outside < 4 * width else nn.AdaptiveAvgPool2d(1))
        inside = outside
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside, classes))


def _normalize(convolution: nn.Conv2d) -> list[nn.Module]:
    """Initialize a convolution after He et al. (2015), and put a norm and a ReLU behind it."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]
