"""Optimizers, which update weights: the learning rate with its scaling and schedule, and torch's optimizer.

optimizer=package.module.function: a function or class of the user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, call_own, own
from bnlab.harness.settings import Component, component, setting
from bnlab.harness.updates import SCHEDULES

if TYPE_CHECKING:
    import torch
    from torch import nn

LEAST_RATE = 1e-9
"""The least learning rate; at it nothing diverges."""

_REFERENCE_BATCH = 128
_EXPONENTS = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}


@dataclass(unsafe_hash=True)
class Optimizer(Component):
    """An optimizer, which updates weights. Its learning rate is stated for a batch of 128 and scaled to others."""

    group: ClassVar[str] = "optimizer"
    lr: float = setting(0.1, "learning rate at batch size 128", at_least=LEAST_RATE)
    lr_scaling: str = setting("sqrt", "how `optimizer.lr` is scaled to other batch sizes", choices=tuple(_EXPONENTS))
    label_smoothing: float = setting(0.0, "share of the label that all classes are given", at_least=0, at_most=0.99)
    schedule: str = setting(
        "onecycle",
        "of the learning rate: onecycle (up for 20%, then down to 0), cosine (up for 5%, then down to 0 along a "
        "cosine), step (÷10 at 50% and 75%), constant",
        choices=tuple(SCHEDULES),
    )

    def peak_lr(self, batch_size: int) -> float:
        """Compute the learning rate for this batch size, before the schedule."""
        exponent = _EXPONENTS[self.lr_scaling]
        return self.lr * (batch_size / _REFERENCE_BATCH) ** exponent

    def build(self, weights: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
        """Build torch's optimizer, at the learning rate for this batch size."""
        raise NotImplementedError

    def count_moments(self) -> int:
        """Count the numbers that it keeps for each weight, from an update of a few."""
        import torch

        weights = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = self.build([weights], _REFERENCE_BATCH)
        weights.grad = torch.ones_like(weights)
        optimizer.step()
        kept = optimizer.state[weights].values()
        # By their shape: AdamW also counts its updates, in one number for all weights.
        return sum(isinstance(value, torch.Tensor) and value.shape == weights.shape for value in kept)


@component
@dataclass(unsafe_hash=True)
class AdamW(Optimizer):
    """AdamW, whose learning rate is usually scaled with the square root of the batch size."""

    name: str = "adamw"
    lr: float = setting(0.003, "learning rate at batch size 128", at_least=LEAST_RATE)
    weight_decay: float = setting(0.01, "weight decay", at_least=0)

    def build(self, weights: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
        from torch.optim import AdamW as TorchAdamW

        return TorchAdamW(weights, self.peak_lr(batch_size), weight_decay=self.weight_decay)


@component
@dataclass(unsafe_hash=True)
class Sgd(Optimizer):
    """SGD with Nesterov momentum."""

    name: str = "sgd"
    weight_decay: float = setting(5e-4, "weight decay", at_least=0)
    momentum: float = setting(0.9, "Nesterov momentum; 0: none", at_least=0, at_most=0.9999)

    def build(self, weights: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
        from torch.optim import SGD

        # torch refuses Nesterov's variant where there is no momentum.
        has_momentum = self.momentum > 0
        lr = self.peak_lr(batch_size)
        return SGD(weights, lr, self.momentum, weight_decay=self.weight_decay, nesterov=has_momentum)


@own
@dataclass(eq=False)
class OwnOptimizer(Own, Optimizer):
    """The user's own: `name` is the import path of a function of weights and `lr` that gives an optimizer of torch's.

    `optimizer.lr` has the function's default. The schedule scales the learning rates of all its groups of weights.
    """

    given: ClassVar[int] = 1
    group_setting: ClassVar[str] = "lr"

    def build(self, weights: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
        from torch.optim import Optimizer as TorchOptimizer

        lr = self.peak_lr(batch_size)
        # A list, because a user's function may go through the weights more than once.
        optimizer = call_own("optimizer", self.name, [*weights], lr=lr, **self.arguments)
        if not isinstance(optimizer, TorchOptimizer):
            kind = type(optimizer).__name__
            raise UserError(f"optimizer={self.name}: has to give a torch.optim.Optimizer, found a {kind}")
        return optimizer
