"""The base of all models, which are settings that build a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.artifacts.norms import Norm, NormBuilder
from bnlab.harness.settings import Component

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class InputShape:
    """The shape of a network's inputs, images [N, channels, image_size, image_size], and its number of classes."""

    channels: int
    image_size: int
    classes: int


@dataclass(unsafe_hash=True)
class Model(Component):
    """A model: the settings of a network. It builds the network that is trained.

    Attributes:
        has_maps: whether its norms are given maps of images, [N, C, H, W]; otherwise units, [N, C].
    """

    group: ClassVar[str] = "model"
    has_maps: ClassVar[bool] = True

    def check(self, norm: Norm) -> None:
        """Raise UserError for a value out of range, or a norm that the network cannot have."""
        raise NotImplementedError

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        """Build the network, in any mode and layout; its weights are drawn from torch's global generator."""
        raise NotImplementedError
