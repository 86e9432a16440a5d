"""optimizer=sgd"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from bnlab.harness.artifacts.optimizers.base import Optimizer
from bnlab.harness.components import component, setting


@component
@dataclass(unsafe_hash=True)
class Sgd(Optimizer):
    """SGD with Nesterov momentum."""

    name: str = "sgd"
    momentum: float = setting(0.9, "Nesterov momentum; 0: none", at_least=0, at_most=0.9999)

    @property
    def moments(self) -> int:
        return int(self.momentum > 0)

    def build(self, weights: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
        has_momentum = self.momentum > 0
        lr = self.peak_lr(batch_size)
        return torch.optim.SGD(weights, lr, self.momentum, weight_decay=self.weight_decay, nesterov=has_momentum)
