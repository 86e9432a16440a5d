"""Several calls of a layer in one forward, compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bnlab.doctor.observing import LayerView
from bnlab.doctor.scatter import Scatter

_SHARE = 0.1  # of the variance, between calls
_LOG_RATIO = 0.2  # of variances of calls: 0.1 above and 0.1 below
_SURE = 4.0  # standard errors: calls of one population hardly ever differ so much
_FEWEST = 30  # images in a call whose differences have a standard error that can be relied on


@dataclass(frozen=True)
class Calls:
    """A layer's calls in a forward, compared.

    Attributes:
        number: how many there are.
        images: images in each, in all batches.
        share: of the variance that lies between calls, mean over channels.
        image_share: of the variance that lies between images, mean over channels.
        log_ratio: of the largest and the smallest variance of a call, median over channels.
        t: how surely a call differs from the first one of the same forward, see `measure_t`; of the call that differs
            most surely.
    """

    number: int
    images: float
    share: float
    image_share: float
    log_ratio: float
    t: float

    @property
    def are_unlike(self) -> bool:
        """Return whether they differ by more than calls of one population do.

        Means of so many images differ by chance, and variances by less than 8/sqrt(images), also where images differ
        much in contrast.
        """
        by_chance = self.image_share / self.images
        least_share = max(_SHARE, 20 * by_chance)
        least_log_ratio = max(_LOG_RATIO, 8 / math.sqrt(self.images))
        return self.share > least_share or self.log_ratio > least_log_ratio

    @property
    def differ_surely(self) -> bool:
        """Return whether they differ by more than chance, by however little."""
        return self.t > _SURE and self.images >= _FEWEST

    def tell(self) -> str:
        """Write by how much they differ."""
        share = f"means make up {self.share:.0%} of the variance"
        times = f"variances differ {math.exp(self.log_ratio):.1f}-fold"
        told = f"{self.number} calls a forward: their {share}, their {times}"
        return told if self.are_unlike else f"{told}, by {self.t:.2g} standard errors"


def compare_calls(view: LayerView) -> Calls | None:
    """Compare the calls of a layer; None where it has one, or its rows are no images."""
    number = len(view.calls)
    if number < 2 or view.image_means.count < 2:
        return None
    pooled = view.pooled
    variances = torch.stack([call.var for call in view.calls])
    within = sum(call.var * call.count for call in view.calls) / pooled.count
    share = 1 - within / pooled.var
    image_share = view.image_means.var / pooled.var
    log_ratio = (variances.amax(0) / variances.amin(0)).log()
    return Calls(
        number,
        view.image_means.count / number,
        float(share.nanmean()),
        float(image_share.nanmean()),
        float(log_ratio.nanmedian()),
        max((measure_t(changes) for changes in view.changes if changes.count > 1), default=math.nan),
    )


def measure_t(changes: Scatter) -> float:
    """Measure how surely changes [2C] of means and mean squares are not 0: root mean square of t over channels.

    The larger one of means and of mean squares; images are the units. Where all channels say the same, it is that of
    one channel, and otherwise less often far off by chance.
    """
    squares = changes.mean.square() / (changes.var / changes.count)
    of_mean, of_square = squares.chunk(2)
    return math.sqrt(max(float(of_mean.nanmean()), float(of_square.nanmean())))
