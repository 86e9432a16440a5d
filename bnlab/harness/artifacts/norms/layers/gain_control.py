"""The layer of norm=gain_control."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GainControl(nn.Module):
    """y = gain·(x − share·m) + shift, with m the mean over pixels of each image's channel; all else one for a channel.

    After Ruff (2017, arXiv 1706.03907), of whose method the abstract says: "a scaled per sample map mean subtraction
    from the raw convolutional filter output followed by scaling of the difference", the same in training and inference.
    Ours are: that share and gain are learned, where they start, and that there is a shift, as other norms have. The
    share starts at 1, the gain where weights drawn after He et al. keep the second moment though the mean is gone: of
    what they make of independent pixels that were normally distributed before a ReLU, it holds 1/π.

    Args:
        channels: C of images [N, C, H, W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.ones(channels))
        self.gain = nn.Parameter(torch.full((channels,), (1 - 1 / math.pi) ** -0.5))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        by_channel = (-1, 1, 1)
        share = self.share.view(by_channel)
        gain = self.gain.view(by_channel)
        shift = self.shift.view(by_channel)

        mean = x.mean((2, 3), keepdim=True)
        # Multiplied out, so that only one product and one sum have the size of x.
        subtracted = gain * share * mean
        offset = shift - subtracted
        scaled = gain * x
        return scaled + offset
