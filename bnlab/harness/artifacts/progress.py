"""How far a training has come: its network, its optimizer, and the loss and accuracy of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

# By kind of device. Results of an accelerator come late, and training does not wait for them.
_UPDATES_BETWEEN_READINGS = {"cpu": 1}
_ON_AN_ACCELERATOR = 50


class Diverged(Exception):
    """A training in which the loss, a weight or a running statistic became NaN or infinite."""


@dataclass
class Progress:
    """The state of training after an update, which callbacks read.

    Attributes:
        model: the network.
        optimizer: with the state of its moments.
        step: updates so far.
        log: of each update that has been read, its number, the loss and the accuracy of its batch.
        average: of the weights.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    log: list[tuple[int, float, float]] = field(default_factory=list)
    average: AveragedModel | None = None
    _unread: list[Tensor] = field(default_factory=list)  # of each update after those: loss, accuracy, if all is finite

    @property
    def loss(self) -> float:
        """The loss of the last update that has been read; NaN before the first."""
        return self.log[-1][1] if self.log else math.nan

    @property
    def measured(self) -> nn.Module:
        """The network that checkpoints keep: the average of weights and buffers once it has begun, else the model."""
        if self.average is None or not self.average.n_averaged:
            return self.model
        return self.average.module

    def add_update(self, loss: Tensor, accuracy: Tensor, is_finite: Tensor) -> None:
        """Count an update; its results stay on their device until they are read."""
        self.step += 1
        self._unread.append(torch.stack((loss.double(), accuracy, is_finite.double())))
        if len(self._unread) >= _UPDATES_BETWEEN_READINGS.get(loss.device.type, _ON_AN_ACCELERATOR):
            self.read_log()

    def describe_divergence(self) -> str:
        """Say that the network is not finite, where the loss may be."""
        return f"weights or batch statistics are not finite at step {self.step}"

    def read_log(self) -> None:
        """Read the results of all updates so far, for which the program waits for its device.

        Raises:
            Diverged: an update had a loss or statistics that are not finite; training is back at the one before it.
        """
        if not self._unread:
            return
        results = torch.stack(self._unread).tolist()
        self._unread.clear()

        before = self.step - len(results)
        for number, (loss, accuracy, is_finite) in enumerate(results):
            self.step = before + number
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} on the weights of step {self.step}")
            if not is_finite:
                raise Diverged(self.describe_divergence())
            self.step += 1
            self.log.append((self.step, loss, accuracy))
