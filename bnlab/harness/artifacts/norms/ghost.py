"""norm=ghost"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.artifacts.norms.base import Norm
from bnlab.harness.settings import component, require_within, setting

if TYPE_CHECKING:
    from torch import nn

    from bnlab.harness.artifacts.norms.layers.site import Site


@component
@dataclass(unsafe_hash=True)
class Ghost(Norm):
    """Batch norm on parts of the batch (Hoffer et al. 2017)."""

    uses_batch: ClassVar[bool] = True
    name: str = "ghost"
    batch_size: int = setting(32, "images that are normalized together, or a few more", at_least=2)

    def check(self, batch_size: int) -> None:
        require_within("norm.batch_size", self.batch_size, 2, batch_size, "a part of the batch")

    def count_images(self, batch_size: int) -> int:
        return self.batch_size

    def build(self, site: Site) -> nn.Module:
        from bnlab.harness.artifacts.norms.layers.ghost import GhostNorm

        return GhostNorm(site.batch_norm(), self.batch_size)
