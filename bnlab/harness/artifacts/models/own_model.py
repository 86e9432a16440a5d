"""model=package.module.function: a function or class of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.parameter import is_lazy

from bnlab.harness.artifacts.models.base import Inputs, Model
from bnlab.harness.artifacts.norms import NormBuilder
from bnlab.harness.artifacts.own import add_arguments, find_arguments, import_object, list_names
from bnlab.harness.errors import UserError, where_raised

_GIVEN = 3  # arguments of a user's function, which bnlab gives it: channels, image_size, classes


@dataclass(unsafe_hash=True)
class OwnModel(Model):
    """The user's own: `name` is the import path of a function of channels, image_size, classes that gives a module.

    Its further arguments are settings, see `describe_own`.
    """

    has_any_name: ClassVar[bool] = True
    is_own: ClassVar[bool] = True

    def build(self, inputs: Inputs, norm: NormBuilder) -> nn.Module:
        make = import_object(self.name)
        try:
            model = make(inputs.channels, inputs.image_size, inputs.classes, **find_arguments(self))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"model={self.name}: {where_raised(error)}") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"model={self.name}: has to give a torch.nn.Module, found a {type(model).__name__}")
        _require_built(self.name, model)
        return model


def describe_own(path: str) -> OwnModel:
    """Make the configuration of a user's function: all arguments but the first three are settings.

    Raises:
        UserError: it cannot be imported, or an argument has the name of a setting of bnlab's.
    """
    given = list_names(path)[:_GIVEN]
    with_settings = add_arguments(OwnModel, path, given)
    return with_settings(name=path)


def _require_built(path: str, model: nn.Module) -> None:
    """Raise UserError for layers that take their sizes from the first images."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = {}
    for name, tensor in tensors:
        if is_lazy(tensor):
            layer, _, _ = name.rpartition(".")
            kind = type(model.get_submodule(layer)).__name__
            lazy[layer] = f"{layer} ({kind})"
    if lazy:
        raise UserError(
            f"model={path}: {', '.join(lazy.values())} have no sizes yet; give them, or return the model after "
            "model.eval()(torch.zeros(1, channels, image_size, image_size))"
        )
