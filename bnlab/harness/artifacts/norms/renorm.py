"""norm=renorm"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.artifacts.norms.base import Norm
from bnlab.harness.settings import component, setting

if TYPE_CHECKING:
    from torch import nn

    from bnlab.estimators import EMA
    from bnlab.harness.artifacts.norms.layers.site import Site


@component
@dataclass(unsafe_hash=True)
class Renorm(Norm):
    """Batch renormalization (Ioffe 2017)."""

    uses_batch: ClassVar[bool] = True
    takes_batch_whole: ClassVar[bool] = True
    name: str = "renorm"
    momentum: float = setting(
        0.01,
        "weight of the new batch in the running averages that the network reads in training",
        more_than=0,
        at_most=1,
    )

    def get_training_average(self) -> EMA:
        from bnlab.estimators import EMA

        return EMA(self.momentum)

    def build(self, site: Site) -> nn.Module:
        from bnlab.harness.artifacts.norms.layers.renorm import BatchRenorm

        return BatchRenorm(site.batch_norm(self.momentum), site.steps)
