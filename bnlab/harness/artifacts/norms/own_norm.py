"""norm=package.module.Class: a class or function of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from torch import nn

from bnlab.borrow import keep_random_state
from bnlab.harness.artifacts.norms.base import Norm, Site
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, call_own, own
from bnlab.layers import BatchNorm

_TRIED = 64  # channels of the layer that is asked what it is


@own
@dataclass(unsafe_hash=True)
class OwnNorm(Own, Norm):
    """The user's own: `name` is the import path of a class or function that makes a module for so many channels."""

    given: ClassVar[int] = 1

    @property
    def uses_batch(self) -> bool:  # type: ignore[override]
        return _holds_batch_norm(self)

    def build(self, site: Site) -> nn.Module:
        layer = call_own("norm", self.name, site.channels, **self.arguments)
        if not isinstance(layer, nn.Module):
            raise UserError(f"norm={self.name}: has to give a torch.nn.Module, found a {type(layer).__name__}")
        return layer


@cache
def _holds_batch_norm(norm: OwnNorm) -> bool:
    """Find out whether there is a batch norm of torch's in the layer."""
    with keep_random_state():
        layer = norm.build(Site(_TRIED, number=1, of_images=True, steps=1))
    return any(isinstance(module, BatchNorm) and module.running_mean is not None for module in layer.modules())
