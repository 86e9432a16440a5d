"""BN204: one layer, several populations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import dropwhile

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.observing import LayerView
from bnlab.doctor.rule import Rule, Signs

_SHARE = 0.1  # of the variance, between calls
_LOG_RATIO = 0.2  # of variances of calls: 0.1 above and 0.1 below


class SeveralPopulations(Rule):
    """A layer is called several times in a forward, and what it is given differs from call to call.

    Train mode normalizes each call by its own statistics, eval mode all by the same: no single set of averages fits.
    Layers behind the first such one that are called as often are named too, as train mode made their calls alike.
    Two views of the same images, as in contrastive learning, are one population.
    """

    code = "BN204"
    title = "one layer, several populations"
    meaning = "The layer serves inputs of different populations, which train mode normalizes apart and eval mode alike."
    remedy = "Give each its own batch norm, or a norm without running averages."
    mends = "batch"
    needs = ("data",)
    explains_bad = True

    def look(self, case: Case) -> Signs | None:
        compared: dict[str, Calls] = {}
        for name in case.seen:
            view = case.data.view.layers.get(name)
            calls = None if view is None else compare_calls(view)
            if calls is not None:
                compared[name] = calls
        unlike = [name for name, calls in compared.items() if calls.are_unlike]
        if not unlike:
            return None
        worst = max((compared[name] for name in unlike), key=lambda calls: calls.share)
        behind = dropwhile(lambda name: name != unlike[0], compared)
        return Signs.of(behind, worst.tell())


@dataclass(frozen=True)
class Calls:
    """A layer's calls in a forward, compared.

    Attributes:
        number: how many there are.
        images: images in each, in all batches.
        share: of the variance that lies between calls, mean over channels.
        image_share: of the variance that lies between images, mean over channels.
        log_ratio: of the largest and the smallest variance of a call, median over channels.
    """

    number: int
    images: float
    share: float
    image_share: float
    log_ratio: float

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

    def tell(self) -> str:
        """Write by how much they differ."""
        share = f"means make up {self.share:.0%} of the variance"
        times = f"variances differ {math.exp(self.log_ratio):.1f}-fold"
        return f"{self.number} calls a forward: their {share}, their {times}"


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
    )
