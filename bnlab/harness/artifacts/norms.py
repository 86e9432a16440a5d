"""What normalizes activations in our own networks, by name: torch's norms, and some that are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.harness.errors import UserError
from bnlab.layers import BatchNorm


@dataclass
class NormConfig:
    """What normalizes activations after each convolution or linear layer but the last."""

    name: str = "batch"  # batch, ghost, group, layer, instance, gain_control, frozen, none
    batch_size: int = 32  # ghost: images that are normalized together
    groups: int = 8  # group: groups of channels


NAMES = ("batch", "ghost", "group", "layer", "instance", "gain_control", "frozen", "none")
RECORDED = NAMES[:2]
"""Norms that train with statistics of the batch, which are recorded."""

_UNSCALED = ("gain_control", "frozen", "none")
_READ = {"ghost": ("batch_size",), "group": ("groups",)}


def check(config: NormConfig) -> None:
    """Raise UserError for a name or value out of range."""
    if config.name not in NAMES:
        raise UserError(f"norm.name={config.name}: must be one of {', '.join(NAMES)}")
    if config.batch_size < 2:
        raise UserError(f"norm.batch_size={config.batch_size}: one image has no batch statistics; must be 2 or more")
    if config.groups < 1:
        raise UserError(f"norm.groups={config.groups}: must be 1 or more")


def training_settings(config: NormConfig) -> dict[str, Any]:
    """The settings that this norm reads."""
    keys = {"name", *_READ.get(config.name, ())}
    return {key: value for key, value in asdict(config).items() if key in keys}


def count_images(config: NormConfig, batch_size: int) -> int | None:
    """How many images of a batch are normalized together, as far as the batch can be divided so; None: each alone."""
    if config.name not in RECORDED:
        return None
    return config.batch_size if config.name == "ghost" else batch_size


@dataclass(frozen=True)
class Norms:
    """Builds the norms of a network.

    Attributes:
        config: which norms.
        of_images: for [N, C, H, W]; otherwise for [N, C].
    """

    config: NormConfig
    of_images: bool

    @property
    def has_shift(self) -> bool:
        """Whether they add a shift, which takes the place of a bias before them."""
        return self.config.name != "none"

    @property
    def sets_scale(self) -> bool:
        """Whether they set the scale of activations; otherwise the weights before them are initialized to keep it."""
        return self.config.name not in _UNSCALED

    def build(self, channels: int) -> nn.Module:
        return _BUILDERS[self.config.name](self, channels)

    def build_batch_norm(self, channels: int) -> BatchNorm:
        return (nn.BatchNorm2d if self.of_images else nn.BatchNorm1d)(channels)

    def build_layer_norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(1, channels) if self.of_images else nn.LayerNorm(channels)


class GhostNorm(nn.Module):
    """Batch norm on parts of the batch of nearly equal size (Hoffer et al. 2017).

    The parts have `batch_size` images or a few more; a batch of fewer is one part. While the batch norm inside is in
    train mode, it is called for each part, and makes as many updates of its averages; in eval mode once for all.

    Args:
        norm: normalizes the parts.
        batch_size: images in a part, at least.
    """

    def __init__(self, norm: BatchNorm, batch_size: int) -> None:
        super().__init__()
        self.norm, self.batch_size = norm, batch_size

    def forward(self, x: Tensor) -> Tensor:
        # By the mode of the norm inside: statistics of frozen weights are taken with that alone in train mode.
        count = len(x) // self.batch_size if self.norm.training else 1
        if count <= 1:
            return self.norm(x)  # type: ignore[no-any-return]
        return torch.cat([self.norm(part) for part in x.tensor_split(count)])


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
        if x[0, 0].numel() == 1:
            raise ValueError("one pixel is its own mean, of which gain control leaves nothing")
        share, gain, shift = (values.view(-1, 1, 1) for values in (self.share, self.gain, self.shift))
        return gain * x + (shift - gain * share * x.mean((2, 3), keepdim=True))


class FrozenNorm(nn.Module):
    """Batch norm that is in eval mode in training too: with averages of 0 and 1 a scale and a shift.

    Args:
        norm: stays as it is but for its weights.
    """

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.norm = norm.eval()

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


_BUILDERS: dict[str, Callable[[Norms, int], nn.Module]] = {
    "batch": lambda norms, channels: norms.build_batch_norm(channels),
    "ghost": lambda norms, channels: GhostNorm(norms.build_batch_norm(channels), norms.config.batch_size),
    "group": lambda norms, channels: nn.GroupNorm(norms.config.groups, channels),
    "layer": lambda norms, channels: norms.build_layer_norm(channels),
    "instance": lambda norms, channels: nn.InstanceNorm2d(channels, affine=True),
    "gain_control": lambda norms, channels: GainControl(channels),
    "frozen": lambda norms, channels: FrozenNorm(norms.build_batch_norm(channels)),
    "none": lambda norms, channels: nn.Identity(),
}
