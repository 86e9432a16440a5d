"""norm=instance"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bnlab.harness.artifacts.norms.base import Norm, Site
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Instance(Norm):
    """Instance norm (Ulyanov et al. 2016): each channel of each image."""

    needs_maps: ClassVar[bool] = True
    name: str = "instance"

    def build(self, site: Site) -> nn.Module:
        return nn.InstanceNorm2d(site.channels, affine=True)
