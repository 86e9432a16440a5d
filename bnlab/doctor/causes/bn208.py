"""BN208: the variance has collapsed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause
from bnlab.doctor.thresholds import COLLAPSE_FALLS, COLLAPSED, NOT_COLLAPSED
from bnlab.doctor.undoing import EXACT


class CollapsedVariance(Cause):
    """Exact variances are below 0.7 of the running ones, the more so the deeper the layer.

    Where weights of different networks are averaged, their features cancel (Jordan et al. 2023); buffers that are
    averages too do not follow. Images of less detail than in training do the same: training_batches= tells them apart.
    """

    code = "BN208"
    title = "variance collapsed"
    meaning = "Features have less variance than the averages say, more so with depth, as where weights were averaged."
    remedy = "Recalibrate after averaging or merging weights."
    undone_by = (EXACT,)
    needs = ("data",)

    def weigh(self, case: Case, layers: Sequence[str]) -> float:
        shallow, deep = _compare_depths(case)
        has_collapsed = deep < COLLAPSED and shallow < NOT_COLLAPSED and deep < COLLAPSE_FALLS * shallow
        return 0.6 if has_collapsed else 0.0

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        shallow, deep = _compare_depths(case)
        return f"variance {shallow:.2f} of the running one in the first third of the layers, {deep:.2f} in the last"


def _compare_depths(case: Case) -> tuple[float, float]:
    """Compare the exact variance with the running one in the first third of the layers, and in the last."""
    names = [name for name in case.seen if name in case.reference]
    middle = [float(case.log_ratios(name, case.reference).median()) for name in names]
    ratios = [math.exp(-value) for value in middle]
    if len(ratios) < 2:
        return math.nan, math.nan
    third = math.ceil(len(ratios) / 3)
    return mean(ratios[:third]), mean(ratios[-third:])
