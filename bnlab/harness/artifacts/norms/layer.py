"""norm=layer"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bnlab.harness.artifacts.norms.base import Norm, Site
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Layer(Norm):
    """Layer norm (Ba et al. 2016): all channels of each image together."""

    name: str = "layer"

    def build(self, site: Site) -> nn.Module:
        return nn.GroupNorm(1, site.channels) if site.of_images else nn.LayerNorm(site.channels)
