"""Optimizers, which update weights: the learning rate with its scaling and schedule, and torch's optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bnlab.harness.components import Component, component, setting
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
        "of the learning rate: onecycle (up for 20%, then down to 0), cosine (up for 5%, then down to 0 along a "
        "cosine), step (÷10 at 50% and 75%), constant",
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
