"""The layer that a norm of the user's makes, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bnlab.harness.errors import UserError
from bnlab.harness.own import call_own
from bnlab.model.borrow import keep_random_state
from bnlab.model.layers import is_batch_norm


def make_layer(path: str, channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Make the layer for so many channels; UserError if the class or function at the import path gives none."""
    layer = call_own("norm", path, channels, **arguments)
    if not isinstance(layer, nn.Module):
        raise UserError(f"norm={path}: has to give a torch.nn.Module, found a {type(layer).__name__}")
    return layer


def holds_batch_norm(path: str, channels: int, arguments: Mapping[str, Any]) -> bool:
    """Find out whether there is a batch norm with running statistics in the layer for so many channels."""
    # Building a layer draws its initial weights, and this question must not change what is drawn later.
    with keep_random_state():
        layer = make_layer(path, channels, arguments)
    return any(map(is_batch_norm, layer.modules()))
