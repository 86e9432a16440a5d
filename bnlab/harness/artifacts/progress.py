"""How far a training has come: its network, its optimizer, and the loss and accuracy of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

# Reading a loss waits until its device has computed it. A CPU has when a call returns; an accelerator computes behind
# the program, which would stand still at each update.
_UPDATES_BETWEEN_READINGS = {"cpu": 1}  # by type of device
_ON_AN_ACCELERATOR = 50  # of any other type


class Diverged(Exception):
    """The loss, a weight or a running statistic became NaN or infinite."""


@dataclass
class Progress:
    """The state of training after an update, which callbacks read.

    Updates are *made* and later *read*: `step` counts those that are made, `log` and `loss` have those that are read.
    `read_log` reads all.

    Attributes:
        model: the network.
        optimizer: its optimizer, with learning rates and moments.
        step: number of updates made.
        log: (step, loss, accuracy) of each update that has been read; loss and accuracy of its batch, before it.
        average: the average of weights and buffers; None without averaging.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    log: list[tuple[int, float, float]] = field(default_factory=list)
    average: AveragedModel | None = None
    # [3] of each update that is made and not read: loss, accuracy, and 1 where all was finite, on the device
    _unread: list[Tensor] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The loss of the last update that has been read; NaN before the first."""
        if not self.log:
            return math.nan
        _, loss, _ = self.log[-1]
        return loss

    @property
    def measured(self) -> nn.Module:
        """The network that checkpoints keep: the average once it has taken weights, before that the model."""
        if self.average is None or not self.average.n_averaged:
            return self.model
        return self.average.module

    def add_update(self, loss: Tensor, accuracy: Tensor, is_finite: Tensor) -> None:
        """Count an update that was made; its results stay on their device until they are read.

        Args:
            loss: of its batch, a number.
            accuracy: on its batch, float64, 0 to 1.
            is_finite: whether loss and running variances were finite, a truth value.

        Raises:
            Diverged: see `read_log`.
        """
        self.step += 1
        results = torch.stack((loss.double(), accuracy, is_finite.double()))
        self._unread.append(results)
        most = _UPDATES_BETWEEN_READINGS.get(loss.device.type, _ON_AN_ACCELERATOR)
        if len(self._unread) >= most:
            self.read_log()

    def read_log(self) -> None:
        """Read the results of all updates made so far; waits until the device has computed them.

        Raises:
            Diverged: an update had a loss or running variances that are not finite. `step` is the number of updates
                before it, and `log` has these.
        """
        if not self._unread:
            return
        results = torch.stack(self._unread).tolist()
        self._unread.clear()

        self.step -= len(results)  # and each of them again once it is seen to be finite
        for loss, accuracy, is_finite in results:
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} on the weights of step {self.step}")
            if not is_finite:
                raise Diverged(self.describe_divergence())
            self.step += 1
            self.log.append((self.step, loss, accuracy))

    def describe_divergence(self) -> str:
        """Say that the network is no longer finite at this step, for a divergence that its loss need not show."""
        return f"weights or batch statistics are not finite at step {self.step}"
