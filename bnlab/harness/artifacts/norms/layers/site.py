"""A place for a norm in a network, which builds torch's own norms for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bnlab.model.layers import BatchNorm


@dataclass(frozen=True)
class Site:
    """A place for a norm in a network."""

    channels: int  # C of its input
    number: int  # of the layer before it in the network, or in its block, counted from 1
    of_images: bool  # the input is [N, C, H, W]; otherwise [N, C]
    steps: int  # updates in the whole training

    def batch_norm(self, momentum: float = 0.1) -> BatchNorm:
        """Build torch's batch norm for this place."""
        kind = nn.BatchNorm2d if self.of_images else nn.BatchNorm1d
        return kind(self.channels, momentum=momentum)

    def group_norm(self, groups: int) -> nn.Module:
        """Build torch's group norm."""
        return nn.GroupNorm(groups, self.channels)

    def layer_norm(self) -> nn.Module:
        """Build torch's layer norm, of all values of an item."""
        # A single group is the layer norm of an image. Torch's LayerNorm would need its height and width.
        return nn.GroupNorm(1, self.channels) if self.of_images else nn.LayerNorm(self.channels)

    def instance_norm(self) -> nn.Module:
        """Build torch's instance norm."""
        # Unlike torch's other norms, this one has no weights and biases by default.
        return nn.InstanceNorm2d(self.channels, affine=True)

    def no_norm(self) -> nn.Module:
        """Build what leaves its input as it is."""
        return nn.Identity()
