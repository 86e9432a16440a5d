"""norm=package.module.Class: a class or function of the user's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Self

from torch import nn

from bnlab.harness.artifacts.norms.base import Norm, Site
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, call_own, own
from bnlab.model.borrow import keep_random_state
from bnlab.model.layers import is_batch_norm


@own
@dataclass(eq=False)
class OwnNorm(Own, Norm):
    """The user's own: `name` is the import path of a class or function that makes a module for so many channels.

    What it is shows in the layer that it makes for the first place in a network.
    """

    given: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not a field: it follows from the model, whose settings are part of the network's name already.
        self._channels = 0  # before it has a place in a network

    def place(self, channels: int) -> Self:
        placed = replace(self)  # another network may have the same norm
        placed._channels = channels
        return placed

    @property
    def uses_batch(self) -> bool:  # type: ignore[override]
        return self._channels > 0 and _holds_batch_norm(self, self._channels)

    @property
    def takes_batch_whole(self) -> bool:  # type: ignore[override]
        """As far as can be known; a layer that is called several times in an update is found where it is recorded."""
        return self.uses_batch

    def build(self, site: Site) -> nn.Module:
        layer = call_own("norm", self.name, site.channels, **self.arguments)
        if not isinstance(layer, nn.Module):
            raise UserError(f"norm={self.name}: has to give a torch.nn.Module, found a {type(layer).__name__}")
        return layer


@cache
def _holds_batch_norm(norm: OwnNorm, channels: int) -> bool:
    """Find out whether there is a batch norm with running statistics in the layer for so many channels."""
    # Building a layer draws its initial weights, and this question must not change what is drawn later. A
    # user's function is given the channels alone, so that the rest of the site is arbitrary.
    with keep_random_state():
        layer = norm.build(Site(channels, number=1, of_images=True, steps=1))
    return any(map(is_batch_norm, layer.modules()))
