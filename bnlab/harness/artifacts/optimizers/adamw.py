"""optimizer=adamw"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from bnlab.harness.artifacts.optimizers.base import Optimizer
from bnlab.harness.components import component, setting


@component
@dataclass(unsafe_hash=True)
class AdamW(Optimizer):
    """AdamW, whose learning rate is usually scaled with the square root of the batch size."""

    name: str = "adamw"
    lr: float = setting(0.003, "learning rate at batch size 128", at_least=1e-9)
    weight_decay: float = setting(0.01, "weight decay", at_least=0)

    @property
    def moments(self) -> int:
        return 2

    def build(self, weights: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, self.peak_lr(batch_size), weight_decay=self.weight_decay)
