"""The layer of norm=ghost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnlab.model.layers import BatchNorm


class GhostNorm(nn.Module):
    """Batch norm on parts of at least `batch_size` images, of nearly equal size (Hoffer et al. 2017).

    While the batch norm inside is in train mode, it is called for each part, and makes as many updates of its averages.
    """

    def __init__(self, norm: BatchNorm, batch_size: int) -> None:
        super().__init__()
        self.norm = norm
        self.batch_size = batch_size

    def forward(self, x: Tensor) -> Tensor:
        # The mode of the inner norm decides, not this module's: `population_statistics` measures frozen weights with
        # the inner norms in train mode and all else in eval mode, and has to see the parts, too.
        count = len(x) // self.batch_size if self.norm.training else 1
        if count <= 1:
            return self.norm(x)  # type: ignore[no-any-return]
        return torch.cat([self.norm(part) for part in x.tensor_split(count)])
