"""norm=ghost"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.norms.base import Norm, Site
from bnlab.harness.components import component, require_within, setting
from bnlab.model.layers import BatchNorm


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
        return GhostNorm(site.batch_norm(), self.batch_size)


class GhostNorm(nn.Module):
    """Batch norm on parts of at least `batch_size` images, of nearly equal size (Hoffer et al. 2017).

    While the batch norm inside is in train mode, it is called for each part, and makes as many updates of its averages.
    """

    def __init__(self, norm: BatchNorm, batch_size: int) -> None:
        super().__init__()
        self.norm = norm
        self.batch_size = batch_size

    def forward(self, x: Tensor) -> Tensor:
        # By the mode of the norm inside: statistics of frozen weights are taken with that alone in train mode.
        count = len(x) // self.batch_size if self.norm.training else 1
        if count <= 1:
            return self.norm(x)  # type: ignore[no-any-return]
        return torch.cat([self.norm(part) for part in x.tensor_split(count)])
