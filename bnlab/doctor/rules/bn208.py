"""BN208: the variance has collapsed."""

from __future__ import annotations

import math
from statistics import mean

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs

_COLLAPSED = 0.7
_FALL = 0.8  # of the last third of the layers over the first
_SHALLOW = 1.1  # of the first third; above it the images are others


class CollapsedVariance(Rule):
    """Exact variances are below 0.7 of the running ones, the more so the deeper the layer.

    Where weights of different networks are averaged, their features cancel (Jordan et al. 2023); buffers that are
    averages too do not follow. Images of less detail than in training do the same: training_batches= tells them apart.
    """

    code = "BN208"
    title = "variance collapsed"
    meaning = "Features have less variance than the averages say, more so with depth, as where weights were averaged."
    remedy = "Recalibrate after averaging or merging weights."
    asks = ("before", "training")
    needs = ("data",)
    unless = ("BN002", "BN003", "BN101", "BN109", "BN206", "BN210")

    def look(self, case: Case) -> Signs | None:
        reference = case.reference
        ratios = {}
        for name in case.seen:
            if name in reference:
                ratios[name] = _find_ratio(case, name)
        if len(ratios) < 2:
            return None

        by_depth = list(ratios.values())
        third = math.ceil(len(by_depth) / 3)
        shallow = mean(by_depth[:third])
        deep = mean(by_depth[-third:])

        falls = deep < _FALL * shallow
        has_collapsed = deep < _COLLAPSED
        is_near_at_first = shallow < _SHALLOW
        if not (falls and has_collapsed and is_near_at_first):
            return None
        layers = [name for name, ratio in ratios.items() if ratio < _COLLAPSED]
        told = f"variance {shallow:.2f} of the running one in the first third of the layers, {deep:.2f} in the last"
        return Signs.of(layers, told)


def _find_ratio(case: Case, name: str) -> float:
    """Find the exact variance over the running one, median over channels."""
    ratios = case.log_ratios(name, case.reference)
    return math.exp(-float(ratios.median()))
