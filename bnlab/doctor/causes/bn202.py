"""BN202: batches are not alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.observing import LayerView
from bnlab.doctor.scatter import Scatter
from bnlab.doctor.undoing import EACH_BATCH, EXACT

_LIKELY = 4.0  # in standard deviations of a normal distribution: how far shuffled batches hardly ever get
_RATIO = 2.0
_SHARE = 0.02  # of a layer's variance, between the means of batches
_SPREAD = 0.1  # standard deviation of the mean squares of batches, over their mean


class UnlikeBatches(Cause):
    """Means or variances of batches differ more than those of shuffled batches do: sorted by class, or a batch of each
    domain in turn.

    The variance between batch means, times the images in a batch, is that between image means if batches are shuffled,
    and so it is with mean squares; how much larger it may be by chance depends on the number of batches. The first
    layer shows it best: later ones are given what each batch's own statistics have normalized. It is harmless where
    only this loader is sorted, as loaders of test images often are, and training shuffles.
    """

    code = "BN202"
    title = "batches are not alike"
    meaning = "Batches come from different populations; averages over the last few describe only these."
    remedy = (
        "Shuffle the training batches, or recalibrate over all; domains that stay apart (recordings, patients) need to "
        "be normalized each by itself, or a batch norm each; for a test loader alone no matter."
    )
    undone_by = (EXACT, EACH_BATCH)
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        found = {name: _compare_batches(case.find_view(name)) for name in case.seen}
        unlike = {name: compared for name, compared in found.items() if compared is not None}
        if not unlike:
            return None
        worst = max(unlike.values(), key=lambda compared: compared.ratio)
        return Signs.of(unlike, worst.tell())

    def weigh(self, case: Case, layers: Sequence[str]) -> float:
        # A test loader may be sorted where training shuffled: then its order says nothing of the averages.
        says_something = case.training_view is not None or case.is_own_better
        return 1.0 if says_something and self.look(case) else 0.0

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        signs = self.look(case)
        return "" if signs is None else signs.evidence


@dataclass(frozen=True)
class _Comparison:
    """A moment of batches compared with that of images.

    Attributes:
        ratio: variance of batches over what that of images lets expect, mean over channels.
        share: the same over the layer's variance, or, of mean squares, over the square of their mean.
        are_means: whether means are compared; otherwise mean squares.
        is_unlike: whether batches differ by more than shuffled ones.
    """

    ratio: float
    share: float
    are_means: bool
    is_unlike: bool

    def tell(self) -> str:
        """Write by how much batches differ."""
        if self.are_means:
            return f"batch means vary {self.ratio:.1f} times as much as shuffled ones, {self.share:.0%} of the variance"
        return f"batch variances vary {self.ratio:.1f} times as much as shuffled ones, by {math.sqrt(self.share):.0%}"


def _compare_batches(view: LayerView | None) -> _Comparison | None:
    """Compare means and mean squares of batches with those of images; return what differs most, None if both may.

    None also where a layer's rows are no images, or of several calls.
    """
    if view is None or len(view.calls) > 1 or view.image_means.count < 2:
        return None
    means = _compare(view.batch_means, view.image_means, view.pooled.var, are_means=True)
    squares = _compare(view.batch_squares, view.image_squares, view.image_squares.mean.square(), are_means=False)
    unlike = [compared for compared in (means, squares) if compared.is_unlike]
    return max(unlike, key=lambda compared: compared.ratio, default=None)


def _compare(batches: Scatter, images: Scatter, scale: Tensor, are_means: bool) -> _Comparison:
    """Compare the variance [C] of batches with what that of images lets expect, and with a scale [C]."""
    expected = images.var * batches.count / images.count
    ratio = float((batches.var / expected).nanmean())
    share = float((batches.var / scale).nanmean())
    most = max(_RATIO, find_chance(batches.count - 1))
    least = _SHARE if are_means else _SPREAD**2
    return _Comparison(ratio, share, are_means, ratio > most and share > least)


def find_chance(freedom: int) -> float:
    """Find how large a mean of squares with so many degrees of freedom hardly ever gets (Wilson & Hilferty 1931)."""
    if freedom < 1:
        return math.inf
    spread = 2 / (9 * freedom)
    root = 1 - spread + _LIKELY * math.sqrt(spread)
    return root**3
