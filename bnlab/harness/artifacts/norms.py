"""What normalizes activations in our own networks, by name: torch's norms, and some that are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.harness.checks import require_one_of, require_weight, require_within
from bnlab.layers import BatchNorm, get_running_buffers


@dataclass(unsafe_hash=True)
class NormConfig:
    """What normalizes activations after each convolution or linear layer but the last."""

    name: str = "???"


@dataclass(unsafe_hash=True)
class BatchStatistics(NormConfig):
    """A norm that trains with statistics of the batch, which are recorded."""

    every_second: str = "none"  # none, group: in place of every second one; resnet: of the second in each block
    groups: int = 8  # of channels, of the group norms that take its place


@dataclass(unsafe_hash=True)
class Batch(BatchStatistics):
    """Batch norm, as torch has it."""

    name: str = "batch"


@dataclass(unsafe_hash=True)
class Ghost(BatchStatistics):
    """Batch norm on parts of the batch (Hoffer et al. 2017)."""

    name: str = "ghost"
    batch_size: int = 32  # images that are normalized together, or a few more


@dataclass(unsafe_hash=True)
class Renorm(BatchStatistics):
    """Batch renormalization (Ioffe 2017)."""

    name: str = "renorm"
    momentum: float = 0.01  # weight of the new batch in the averages that it trains with


@dataclass(unsafe_hash=True)
class Group(NormConfig):
    """Group norm (Wu & He 2018): each image by itself."""

    name: str = "group"
    groups: int = 8  # of channels


CHOICES: dict[str, NormConfig] = {
    "batch": Batch(),
    "ghost": Ghost(),
    "renorm": Renorm(),
    "group": Group(),
    **{name: NormConfig(name) for name in ("layer", "instance", "gain_control", "none")},
}
"""What `norm=` chooses from.

layer (Ba et al. 2016): all channels together. instance (Ulyanov et al. 2016): each channel of each image.
gain_control (after Ruff 2017): see `GainControl`. none: layers have biases, initial weights keep the variance (He et
al. 2015), residual branches start at 0.
"""
NAMES = tuple(CHOICES)
RECORDED = tuple(name for name, choice in CHOICES.items() if isinstance(choice, BatchStatistics))
"""Norms that train with statistics of the batch, which are recorded."""


def check(config: NormConfig) -> None:
    """Raise UserError for a value out of range."""
    if isinstance(config, BatchStatistics):
        require_one_of("norm.every_second", config.every_second, ("none", "group"))
    if isinstance(config, BatchStatistics | Group):
        require_within("norm.groups", config.groups, 1)
    if isinstance(config, Renorm):
        require_weight("norm.momentum", config.momentum)


def count_images(config: NormConfig, batch_size: int) -> int | None:
    """How many images of a batch are normalized together, as far as the batch can be divided so; None: each alone."""
    if not isinstance(config, BatchStatistics):
        return None
    return config.batch_size if isinstance(config, Ghost) else batch_size


@dataclass(frozen=True)
class Norms:
    """Builds the norms of a network.

    Attributes:
        config: which norms.
        of_images: for [N, C, H, W]; otherwise for [N, C].
        steps: updates in the training, which the limits of batch renormalization follow.
    """

    config: Any
    of_images: bool
    steps: int

    @property
    def has_shift(self) -> bool:
        """Whether they add a shift, which takes the place of a bias before them."""
        return self.config.name != "none"

    @property
    def sets_scale(self) -> bool:
        """Whether they set the scale of activations; otherwise the weights before them are initialized to keep it."""
        return self.config.name not in ("gain_control", "none")

    def build(self, channels: int, number: int = 1) -> nn.Module:
        """That after a network's or a block's layer of this number, counted from 1."""
        config = self.config
        if number % 2 == 0 and getattr(config, "every_second", "none") != "none":
            return nn.GroupNorm(config.groups, channels)
        batch_norm = nn.BatchNorm2d if self.of_images else nn.BatchNorm1d
        match config.name:
            case "batch":
                return batch_norm(channels)
            case "ghost":
                return GhostNorm(batch_norm(channels), config.batch_size)
            case "renorm":
                return BatchRenorm(batch_norm(channels, momentum=config.momentum), self.steps)
            case "group":
                return nn.GroupNorm(config.groups, channels)
            case "layer":
                return nn.GroupNorm(1, channels) if self.of_images else nn.LayerNorm(channels)
            case "instance":
                return nn.InstanceNorm2d(channels, affine=True)
            case "gain_control":
                return GainControl(channels)
        return nn.Identity()


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


class BatchRenorm(nn.Module):
    """Batch renormalization (Ioffe 2017, arXiv 1702.03275): in training y = γ·(x̂·r + d) + β with x̂ = (x − μ_B)/σ_B.

        r = clip(σ_B/σ, 1/r_max, r_max), d = clip((μ_B − μ)/σ, −d_max, d_max)

    No gradient flows through r and d. μ and σ are of the running averages before this batch. The batch norm inside
    updates these by its momentum as torch does: averages of unbiased variances, where the paper averages σ_B. In eval
    mode the layer is that batch norm.

    r_max rises from 1 to 3 and d_max from 0 to 5, on straight lines: in the paper from update 5,000 on, r_max until
    update 40,000 and d_max until 25,000, of 130,000; here at the same shares of the training.

    Args:
        norm: affine; keeps the averages, and counts the batches by which the limits rise.
        steps: updates in the training.
    """

    def __init__(self, norm: BatchNorm, steps: int) -> None:
        super().__init__()
        self.norm, self.steps = norm, steps

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.norm.training):  # alone, as where weights are frozen, it is a batch norm
            return self.norm(x)  # type: ignore[no-any-return]
        r, d = self._correct(x.detach())
        weight, bias = self.norm.weight, self.norm.bias
        shape = (1, -1, *[1] * (x.dim() - 2))
        # γ·(x̂·r + d) + β, of γ·x̂ + β
        return self.norm(x) * r.view(shape) + (weight * d + bias * (1 - r)).view(shape)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _correct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """r and d, [C]."""
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        running_mean, running_var = get_running_buffers(self.norm)
        sigma = (running_var + self.norm.eps).sqrt()
        r_max, d_max = self.limits()
        r = ((var + self.norm.eps).sqrt() / sigma).clamp(1 / r_max, r_max)
        return r, ((mean - running_mean) / sigma).clamp(-d_max, d_max)

    def limits(self) -> tuple[Tensor, Tensor]:
        """r_max and d_max for the next batch, without waiting for an accelerator."""
        batches = self.norm.num_batches_tracked
        assert batches is not None
        share = batches / self.steps
        rises = [((share - 5 / 130) / ((end - 5) / 130)).clamp(0, 1) for end in (40, 25)]
        return 1 + 2 * rises[0], 5 * rises[1]


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
        share, gain, shift = (values.view(-1, 1, 1) for values in (self.share, self.gain, self.shift))
        return gain * x + (shift - gain * share * x.mean((2, 3), keepdim=True))
