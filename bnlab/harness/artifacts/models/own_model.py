"""model=package.module.function: a function or class of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.parameter import is_lazy

from bnlab.harness.artifacts.models.base import InputShape, Model
from bnlab.harness.artifacts.norms import NormBuilder
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, call_own, own


@own
@dataclass(unsafe_hash=True)
class OwnModel(Own, Model):
    """The user's own: `name` is the import path of a function of channels, image_size, classes that gives a module."""

    given: ClassVar[int] = 3

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        sizes = (inputs.channels, inputs.image_size, inputs.classes)
        model = call_own("model", self.name, *sizes, **self.arguments)
        if not isinstance(model, nn.Module):
            raise UserError(f"model={self.name}: has to give a torch.nn.Module, found a {type(model).__name__}")

        lazy = {}  # layers that take their sizes from the first images
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if is_lazy(tensor):
                layer, _, _ = name.rpartition(".")
                lazy[layer] = f"{layer} ({type(model.get_submodule(layer)).__name__})"
        if lazy:
            raise UserError(
                f"model={self.name}: {', '.join(lazy.values())} have no sizes yet; give them, or return the model "
                "after model.eval()(torch.zeros(1, channels, image_size, image_size))"
            )
        return model
