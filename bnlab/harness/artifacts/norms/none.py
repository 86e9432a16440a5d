"""norm=none"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bnlab.harness.artifacts.norms.base import Norm, Site
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class NoNorm(Norm):
    """No norm: layers have biases, initial weights keep the variance (He et al. 2015), residual branches start at 0."""

    has_shift: ClassVar[bool] = False
    sets_scale: ClassVar[bool] = False
    name: str = "none"

    def build(self, site: Site) -> nn.Module:
        return nn.Identity()
