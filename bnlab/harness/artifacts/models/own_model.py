"""model=package.module.function: a function or class of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.parameter import is_lazy

from bnlab.harness.artifacts.models.base import InputShape, Model
from bnlab.harness.artifacts.norms import Batch, Norm, NormBuilder
from bnlab.harness.components import COMPONENTS
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, call_own, own


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
        sizes = (inputs.channels, inputs.image_size, inputs.classes)
        model = call_own("model", self.name, *sizes, **self.arguments)
        if not isinstance(model, nn.Module):
            raise UserError(f"model={self.name}: has to give a torch.nn.Module, found a {type(model).__name__}")

        if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
            raise UserError(
                f"model={self.name}: has lazy layers, which have no sizes yet; give them, or return the model after "
                "model.eval()(torch.zeros(1, channels, image_size, image_size))"
            )
        return model
