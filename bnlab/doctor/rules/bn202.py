"""BN202: batches are not alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import dropwhile

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs

_LIKELY = 4.0  # in standard deviations of a normal distribution: how far shuffled batches hardly ever get
_RATIO = 2.0
_SHARE = 0.02  # of a layer's variance, between batches


class UnlikeBatches(Rule):
    """Batch means differ more than those of shuffled batches do: sorted by class, by domain, by recording.

    The variance between batch means, times the images in a batch, is that between image means if batches are shuffled;
    how much larger it may be by chance depends on the number of batches. The first layer shows it best: later ones are
    given what each batch's own statistics have normalized, and are named too, as their averages are of the same
    batches. It is harmless where only this loader is sorted, as loaders of test images often are, and training
    shuffles.
    """

    code = "BN202"
    title = "batches are not alike"
    meaning = "Batches come from different populations; averages over the last few describe only these."
    remedy = "Shuffle the training batches, or recalibrate over all of them; for a test loader no matter."
    severity = "note"
    needs = ("data",)
    explains_bad = True

    def look(self, case: Case) -> Signs | None:
        comparisons = {name: _compare(case, name) for name in case.seen}
        unlike = {name: compared for name, compared in comparisons.items() if compared.is_unlike}
        if not unlike:
            return None
        worst = max(unlike.values(), key=lambda compared: compared.ratio)
        told = f"batch means vary {worst.ratio:.1f} times as much as shuffled ones, {worst.share:.0%} of the variance"
        behind = dropwhile(lambda name: name not in unlike, comparisons)
        return Signs.of(behind, told)


@dataclass(frozen=True)
class _Comparison:
    """Batch means compared with image means.

    Attributes:
        ratio: variance of batch means over what that of image means lets expect, mean over channels.
        share: the same over the layer's variance.
        batches: number of batches.
    """

    ratio: float = math.nan
    share: float = math.nan
    batches: int = 0

    @property
    def is_unlike(self) -> bool:
        most = max(_RATIO, find_chance(self.batches - 1))
        return self.ratio > most and self.share > _SHARE


def _compare(case: Case, name: str) -> _Comparison:
    """Compare batch means with image means; NaN where a layer's rows are no images, or of several calls."""
    view = case.find_view(name)
    if view is None or len(view.calls) > 1 or view.image_means.count < 2:
        return _Comparison()
    batches = view.batch_means.count
    between = view.batch_means.var
    expected = view.image_means.var * batches / view.image_means.count
    ratio = float((between / expected).nanmean())
    share = float((between / view.pooled.var).nanmean())
    return _Comparison(ratio, share, batches)


def find_chance(freedom: int) -> float:
    """Find how large a mean of squares with so many degrees of freedom hardly ever gets (Wilson & Hilferty 1931)."""
    if freedom < 1:
        return math.inf
    spread = 2 / (9 * freedom)
    root = 1 - spread + _LIKELY * math.sqrt(spread)
    return root**3
