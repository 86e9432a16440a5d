"""The network that a model of the user's makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parameter import is_lazy

from bnlab.harness.errors import UserError
from bnlab.harness.own import call_own

if TYPE_CHECKING:
    from bnlab.harness.artifacts.models.base import InputShape


def make_network(path: str, inputs: InputShape, arguments: Mapping[str, Any]) -> nn.Module:
    """Make the network; UserError if the function at the import path gives none, or one that has no sizes yet."""
    network = call_own("model", path, inputs.channels, inputs.image_size, inputs.classes, **arguments)
    if not isinstance(network, nn.Module):
        raise UserError(f"model={path}: has to give a torch.nn.Module, found a {type(network).__name__}")

    if any(is_lazy(tensor) for tensor in [*network.parameters(), *network.buffers()]):
        raise UserError(
            f"model={path}: has lazy layers, which have no sizes yet; give them, or return the model after "
            "model.eval()(torch.zeros(1, channels, image_size, image_size))"
        )
    return network
