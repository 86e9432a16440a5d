"""norm=package.module.Class: a class or function of the user's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Self

from bnlab.harness.artifacts.norms.base import Norm
from bnlab.harness.own import Own, own

if TYPE_CHECKING:
    from torch import nn

    from bnlab.harness.artifacts.norms.layers.site import Site


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
        from bnlab.harness.artifacts.norms.layers.own_layer import make_layer

        return make_layer(self.name, site.channels, self.arguments)


@cache
def _holds_batch_norm(norm: OwnNorm, channels: int) -> bool:
    """Find out whether there is a batch norm with running statistics in the layer for so many channels."""
    from bnlab.harness.artifacts.norms.layers.own_layer import holds_batch_norm

    return holds_batch_norm(norm.name, channels, norm.arguments)
