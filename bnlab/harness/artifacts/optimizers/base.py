"""The base of all optimizers: the learning rate with its scaling and schedule, and the torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bnlab.harness.components import Component, setting
from bnlab.harness.updates import SCHEDULES

_REFERENCE_BATCH = 128
_EXPONENTS = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}


@dataclass(unsafe_hash=True)
class Optimizer(Component):
    """An optimizer, which updates weights. Its learning rate is stated for a batch of 128 and scaled to others.

    Attributes:
        moments: numbers that it keeps for each weight.
    """

    group: ClassVar[str] = "optimizer"
    lr: float = setting(0.1, "learning rate at batch size 128", at_least=1e-9)
    lr_scaling: str = setting("sqrt", "how `optimizer.lr` is scaled to other batch sizes", choices=tuple(_EXPONENTS))
    weight_decay: float = setting(5e-4, "weight decay", at_least=0)
    label_smoothing: float = setting(0.0, "share of the label that all classes are given", at_least=0, at_most=0.99)
    schedule: str = setting(
        "onecycle",
        "of the learning rate: onecycle (up for 20%, then down to 0), step (÷10 at 50% and 75%), constant",
        choices=tuple(SCHEDULES),
    )

    @property
    def moments(self) -> int:
        raise NotImplementedError

    def peak_lr(self, batch_size: int) -> float:
        """Compute the learning rate for this batch size, before the schedule."""
        exponent = _EXPONENTS[self.lr_scaling]
        return self.lr * (batch_size / _REFERENCE_BATCH) ** exponent

    def build(self, weights: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
        """Build torch's optimizer, at the learning rate for this batch size."""
        raise NotImplementedError
