"""Several calls of a layer in one forward, compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bnlab.doctor.observing import LayerView

_SHARE = 0.1  # of the variance, between calls
_LOG_RATIO = 0.2  # of variances of calls: 0.1 above and 0.1 below


@dataclass(frozen=True)
class Calls:
    """A layer's calls in a forward, compared.

    Attributes:
        number: how many there are.
        share: of the variance that lies between calls, mean over channels.
        log_ratio: of the largest and the smallest variance of a call, median over channels.
        are_unlike: whether they differ by more than calls of one population do.
    """

    number: int
    share: float
    log_ratio: float
    are_unlike: bool

    def tell(self) -> str:
        """Write by how much they differ."""
        share = f"means make up {self.share:.0%} of the variance"
        times = f"variances differ {math.exp(self.log_ratio):.1f}-fold"
        return f"{self.number} calls a forward: their {share}, their {times}"


def compare_calls(view: LayerView) -> Calls | None:
    """Compare the calls of a layer; None where it has one, or its rows are no images.

    Means of so many images differ by chance, and variances by less than 8/sqrt(images), also where images differ much
    in contrast.
    """
    number = len(view.calls)
    if number < 2 or view.image_means.count < 2:
        return None
    pooled = view.pooled
    variances = torch.stack([call.var for call in view.calls])
    within = sum(call.var * call.count for call in view.calls) / pooled.count
    share = float((1 - within / pooled.var).nanmean())
    log_ratio = float((variances.amax(0) / variances.amin(0)).log().nanmedian())

    images = view.image_means.count / number
    by_chance = float((view.image_means.var / pooled.var).nanmean()) / images
    are_unlike = share > max(_SHARE, 20 * by_chance) or log_ratio > max(_LOG_RATIO, 8 / math.sqrt(images))
    return Calls(number, share, log_ratio, are_unlike)
