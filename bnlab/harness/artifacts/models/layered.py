"""Networks of bnlab's own layers, whose norm can be chosen: a small conv net, an MLP, ResNets for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.artifacts.models.base import InputShape, Model
from bnlab.harness.artifacts.norms import Norm, NormBuilder
from bnlab.harness.errors import UserError
from bnlab.harness.settings import COMPONENTS, add_choice, component, setting

if TYPE_CHECKING:
    from torch import nn


@dataclass(unsafe_hash=True)
class Layered(Model):
    """A model whose networks are made of bnlab's layers, with any norm."""

    @property
    def width(self) -> int:
        """Channels or units of the first layer: a setting of each of these networks."""
        raise NotImplementedError

    def check(self, norm: Norm) -> None:
        if norm.needs_maps and not self.has_maps:
            known = ", ".join(name for name, model in COMPONENTS["model"].items() if model.has_maps)
            unit = f"a unit of model={self.name}"
            raise UserError(f"norm={norm.name}: {unit} has one value, not a map; use model={known}")
        if self.width % norm.divisor != 0:
            raise UserError(f"norm.groups={norm.divisor}: must divide model.width={self.width}")


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

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        from bnlab.harness.artifacts.models.networks.layered import build_cnn

        return build_cnn(inputs, norm, depth=self.depth, width=self.width, pool_every=self.pool_every)


add_choice("plain", Cnn(depth=16, width=16, pool_every=6))


@component
@dataclass(unsafe_hash=True)
class Mlp(Layered):
    """Hidden layers of linear, norm and ReLU on all pixels of an image, then a linear layer to the classes."""

    has_maps: ClassVar[bool] = False
    name: str = "mlp"
    depth: int = setting(2, "hidden layers", at_least=1)
    width: int = setting(256, "units of a hidden layer", at_least=1)

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        from bnlab.harness.artifacts.models.networks.layered import build_mlp

        return build_mlp(inputs, norm, depth=self.depth, width=self.width)


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

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        from bnlab.harness.artifacts.models.networks.layered import build_resnet

        return build_resnet(inputs, norm, depth=self.depth, width=self.width)
