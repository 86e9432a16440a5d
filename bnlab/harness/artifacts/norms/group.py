"""norm=group"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bnlab.harness.artifacts.norms.base import Norm, Site
from bnlab.harness.components import component, setting


@component
@dataclass(unsafe_hash=True)
class Group(Norm):
    """Group norm (Wu & He 2018): groups of channels of each image."""

    name: str = "group"
    groups: int = setting(8, "groups of channels", at_least=1)

    @property
    def divisor(self) -> int:
        return self.groups

    def build(self, site: Site) -> nn.Module:
        return nn.GroupNorm(self.groups, site.channels)
