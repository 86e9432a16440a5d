"""An estimator: a running average of batch statistics, which costs no training."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.estimators import Estimator, Stream


@dataclass(frozen=True)
class Decaying(Estimator):
    """The weight of a new batch falls with the number of batches so far: t^-power for batch t."""

    name: ClassVar[str] = "decaying"
    power: float = 0.7  # in brackets: estimator="mine.estimator.Decaying(power=0.5)"

    def gains(self, stream: Stream) -> Tensor:
        """Return the weight of each batch, [T], float64."""
        return torch.arange(1, len(stream) + 1, dtype=torch.float64) ** -self.power
