"""norm=gain_control"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.artifacts.norms.base import Norm
from bnlab.harness.settings import component

if TYPE_CHECKING:
    from torch import nn

    from bnlab.harness.artifacts.norms.layers.site import Site


@component
@dataclass(unsafe_hash=True)
class ImageGain(Norm):
    """Gain control of each image (after Ruff 2017): the mean of its channel is subtracted, and what is left scaled."""

    sets_scale: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = True
    name: str = "gain_control"

    def build(self, site: Site) -> nn.Module:
        from bnlab.harness.artifacts.norms.layers.gain_control import GainControl

        return GainControl(site.channels)
