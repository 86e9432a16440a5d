"""Estimators whose gains come from the data: how noisy the batches are and how fast the statistics drift."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnlab.estimators.base import Estimator, Stream
from bnlab.estimators.example import after  # noqa: F401 (in the docstrings)
from bnlab.theory import NO_NOISE, local_level

_FIRST = 16  # batches before the first fit
_GROWTH = 1.5  # of the past from one fit to the next
_LONGEST = 2048  # batches that one fit looks at
_FEWEST = 8  # batches without NaN that a fit needs


@dataclass(frozen=True)
class Kalman(Estimator):
    """Gain from the measured drift and noise, past batches only: `K ← (K+λ)/(K+λ+1)`, λ = drift/noise variance.

    The Kalman filter of a random walk plus noise: from K₁ = 1, in the long run the momentum `theory.optimal_momentum`.
    λ is 0 at first; from batch 16 on it is refitted each time the past has grown by half, by `theory.local_level` on
    its last half (16 to 2,048 batches), for the mean and for log(variance+eps), whose noise does not depend on its
    level; averaged are the mean and the unbiased variance. `per="layer"`: the channels of a layer share λ, which takes
    far fewer batches to find than `per="channel"`. No gain is less than 2/(t+1): over a short past the fit tells no
    drift from little drift. A warm start is not used. Assumes independent noise; drift that is autocorrelated is
    followed as well as by the best momentum. Source: ours; Muth 1960, Harvey 1989 (the model).

    >>> after(Kalman(), 1, 2)
    [[1.0, 2.0], [2.3333, 6.0]]
    """

    name: ClassVar[str] = "kalman"
    per: str = "layer"

    def __post_init__(self) -> None:
        if self.per not in ("layer", "channel"):
            raise ValueError(f"{self.name}: per={self.per!r}; it is layer or channel")

    def gains(self, stream: Stream) -> Tensor:
        mean, var = stream.batches.unbind(1)
        # A variance of 0 where eps is 0, too, gives −∞, and a fit leaves that batch out.
        logarithm = (var + stream.eps).log()
        series = torch.stack((mean, logarithm), dim=1).numpy()
        layers = stream.layers or (series.shape[2],)
        windows = dict(self.fits(len(stream)))

        gains = np.empty(series.shape)
        ratio = np.zeros(series.shape[1:])
        # The first gain is then 1 / (1 + 1 / ∞) = 1, whatever the ratio is.
        gain = np.full(series.shape[1:], np.inf)
        for t in range(len(stream)):
            if t in windows:
                ratio = self._fit_ratio(series[windows[t]], layers, ratio)
            predicted = gain + ratio
            # This is 2/(t + 1) of the docstring, where t counts from 1.
            least = 2 / (t + 2)
            # This form equals predicted / (predicted + 1), which would be ∞/∞ at the start.
            gain = np.maximum(1 / (1 + 1 / predicted), least)
            gains[t] = gain
        return torch.from_numpy(gains)

    def fits(self, length: int) -> Iterator[tuple[int, slice]]:
        """List before which batch (from 0) to fit, and to which batches."""
        t = _FIRST
        while t < length:
            # Half of a short past would be too few batches for a fit.
            half = max(t // 2, _FIRST)
            first = t - min(half, _LONGEST)
            yield t, slice(first, t)
            t = int(t * _GROWTH)

    def _fit_ratio(
        self, series: NDArray[np.float64], layers: tuple[int, ...], before: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Estimate drift over noise [2, C] from [steps, 2, C]; as before where too few batches are finite."""
        ratio = before.copy()
        first = 0
        for channels in layers:
            part = slice(first, first + channels)
            for statistic in range(2):
                values = series[:, statistic, part]
                # A fit takes only finite values, and channels that share a fit need the same batches.
                finite = values[np.isfinite(values).all(axis=1)]
                if len(finite) < _FEWEST:
                    continue
                level = local_level(finite, pooled=self.per == "layer")
                # Without noise the ratio is infinite, so that the largest one of the grid stands for it. That holds
                # without drift, too: a channel that never changes has momentum 1.
                without_noise = np.full(channels, NO_NOISE)
                ratio[statistic, part] = np.divide(level.drift, level.noise, out=without_noise, where=level.noise > 0)
            first += channels
        return ratio
