"""Mean and variance of rows that come one after the other, kept on their device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.moments import Moments


@dataclass
class Scatter:
    """Mean and variance of rows [C], which come one after the other; rows of more values weigh more.

    Attributes:
        count: rows so far.
        weight: sum of their weights.
        mean: float64 [C].
        squares: float64 [C], sum of squared deviations from the mean, each times its row's weight.
    """

    count: int
    weight: float
    mean: Tensor
    squares: Tensor

    @staticmethod
    def empty(channels: int, device: torch.device) -> Scatter:
        """Make the scatter of no rows."""
        zeros = torch.zeros(channels, dtype=torch.float64, device=device)
        return Scatter(0, 0.0, zeros, zeros.clone())

    def add(self, row: Tensor, weight: float = 1.0) -> None:
        """Add a row [C] of this weight."""
        self._add_alike(row, 1, weight)

    def add_all(self, rows: Tensor) -> None:
        """Add rows [N, C] of weight 1, all at once."""
        mean = rows.mean(0)
        self._add_alike(mean, len(rows), len(rows))
        self.squares.add_((rows - mean).square_().sum(0))

    def add_moments(self, moments: Moments) -> None:
        """Add the values of which these are the moments, as rows of weight 1."""
        count = int(moments.count)
        self._add_alike(moments.mean, count, count)
        self.squares.add_(moments.var, alpha=count)

    def _add_alike(self, mean: Tensor, count: int, weight: float) -> None:
        """Add rows that are all the same (Chan, Golub & LeVeque 1979).

        Few operations: on an accelerator each of them takes as long as a layer of a small network.

        Args:
            mean: [C], what each of them is.
            count: number of rows.
            weight: of all together.
        """
        total = self.weight + weight
        delta = mean - self.mean
        self.squares.addcmul_(delta, delta, value=self.weight * weight / total)
        self.mean.add_(delta, alpha=weight / total)
        self.weight = total
        self.count += count

    @property
    def var(self) -> Tensor:
        """Variance [C] of a row of average weight, with divisor count − 1; NaN of fewer than two rows.

        Rows that are means of as many values as they weigh have variances that fall with their weights: a last batch
        that is smaller than the others does not make these look unlike.
        """
        if self.count < 2:
            return torch.full_like(self.squares, torch.nan)
        return self.squares / (self.count - 1) * (self.count / self.weight)

    @property
    def moments(self) -> Moments:
        """Count, mean and variance, divisor count, of rows that are values."""
        return Moments(self.count, self.mean, self.squares / self.count)

    def split(self) -> tuple[Scatter, Scatter]:
        """Split into the scatters of the first half of the channels and of the second."""
        means = self.mean.chunk(2)
        squares = self.squares.chunk(2)
        first, second = (Scatter(self.count, self.weight, *half) for half in zip(means, squares, strict=True))
        return first, second

    def fetch(self) -> Scatter:
        """Bring it to the CPU."""
        mean, squares = torch.stack((self.mean, self.squares)).cpu()
        return Scatter(self.count, self.weight, mean, squares)
