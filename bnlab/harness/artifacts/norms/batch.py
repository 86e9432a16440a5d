"""norm=batch"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bnlab.harness.artifacts.norms.base import BatchStatistics, Site
from bnlab.harness.components import component


@component
@dataclass(unsafe_hash=True)
class Batch(BatchStatistics):
    """Batch norm, as torch has it."""

    takes_batch_whole: ClassVar[bool] = True
    is_plain: ClassVar[bool] = True
    name: str = "batch"

    def build_with_batch(self, site: Site) -> nn.Module:
        return site.batch_norm()
