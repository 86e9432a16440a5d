"""BN202: batches are not alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from bnlab.doctor.cause import Cause, Ground, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.observing import LayerView, Scatter
from bnlab.doctor.thresholds import BATCHES_LIKELY, BATCHES_RATIO, BATCHES_SHARE, BATCHES_SPREAD
from bnlab.doctor.undo import EACH_BATCH, EXACT


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
        "Shuffle the training batches, or recalibrate over all; separate domains (recordings, patients) need "
        "per-domain statistics or a batch norm each; if only the test loader is sorted, this is harmless."
    )
    undone_by = (EXACT, EACH_BATCH)
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        unlike = {}
        for name in case.seen:
            differences = _compare_batches(case.find_view(name))
            if differences:
                unlike[name] = max(differences)
        if not unlike:
            return None
        largest = max(unlike.values())
        return Signs.of(unlike, largest.words)

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        # A test loader may be sorted where training shuffled: then its order says nothing of the averages.
        says_something = case.training_view is not None or case.is_batch_better
        return {"populations": float(says_something and self.look(case) is not None)}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        signs = self.look(case)
        return "" if signs is None else signs.evidence


class _Difference(NamedTuple):
    """A way in which batches differ by more than shuffled ones do; the largest ratio is the largest difference.

    Attributes:
        ratio: how many times as much they vary.
        words: the same in words.
    """

    ratio: float
    words: str


def _compare_batches(view: LayerView | None) -> list[_Difference]:
    """Compare means and mean squares of batches with those of images, where a layer's rows are images of one call.

    Returns:
        Those of the two that differ by more than shuffled batches do.
    """
    # The view counts each call as a batch, so that calls that differ would look like batches that differ.
    if view is None or len(view.calls) > 1 or view.image_means.count < 2:
        return []
    differences = []
    most = max(BATCHES_RATIO, compute_chance(view.batch_means.count - 1))
    ratio, share = _compare(view.batch_means, view.image_means, view.pooled.var)
    if ratio > most and share > BATCHES_SHARE:
        reported = f"batch means vary {ratio:.1f} times as much as shuffled ones, {share:.0%} of the variance"
        differences.append(_Difference(ratio, reported))

    ratio, share = _compare(view.batch_squares, view.image_squares, view.image_squares.mean.square())
    if ratio > most and share > BATCHES_SPREAD**2:
        reported = f"batch variances vary {ratio:.1f} times as much as shuffled ones, by {math.sqrt(share):.0%}"
        differences.append(_Difference(ratio, reported))
    return differences


def _compare(batches: Scatter, images: Scatter, scale: Tensor) -> tuple[float, float]:
    """Compare the variance [C] of batches with what that of images lets expect, and with a scale [C]."""
    # Images over batches is the size of a batch, by which the variance of a mean over it is smaller.
    expected = images.var * batches.count / images.count
    # A dead channel gives 0/0, and is left out of the mean.
    ratio = (batches.var / expected).nanmean()
    share = (batches.var / scale).nanmean()
    return float(ratio), float(share)


def compute_chance(freedom: int) -> float:
    """Find how large a mean of squares with so many degrees of freedom hardly ever gets (Wilson & Hilferty 1931)."""
    if freedom < 1:
        return math.inf
    spread = 2 / (9 * freedom)
    root = 1 - spread + BATCHES_LIKELY * math.sqrt(spread)
    return root**3
