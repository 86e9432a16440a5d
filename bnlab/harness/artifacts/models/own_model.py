"""model=package.module.function: a function or class of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.artifacts.models.base import InputShape, Model
from bnlab.harness.artifacts.norms import Batch, Norm, NormBuilder
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, own
from bnlab.harness.settings import COMPONENTS

if TYPE_CHECKING:
    from torch import nn


@own
@dataclass(eq=False)
class OwnModel(Own, Model):
    """The user's own: `name` is the import path of a function of channels, image_size, classes that gives a module."""

    given: ClassVar[int] = 3

    def check(self, norm: Norm) -> None:
        # Another norm would not be built, but would still be part of the network's name.
        if norm != Batch():
            known = ", ".join(COMPONENTS["model"])
            raise UserError(f"norm={norm.name}: {self.name} has normalization of its own; use model={known}")

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        from bnlab.harness.artifacts.models.networks.own_network import make_network

        return make_network(self.name, inputs, self.arguments)
