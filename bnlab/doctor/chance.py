"""How far averages are off, compared with what chance explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from bnlab.doctor.case import Case
from bnlab.doctor.words import tell_number

FEW_VALUES = 50  # of a channel in a batch: their variance is low and noisy, see BN203
_LARGE = 0.3  # σ, or log variance: a gap that few batches tell from chance, if it costs something


def is_beyond_chance(case: Case, name: str) -> bool:
    """Return whether a layer is off, and its mean by more than three times the noise of an average (median |T|).

    Where exact statistics score better, a variance off by .3 (log, median over channels) is enough, as noise is no
    bias. Fewer than three batches do not tell chance; then the gap has to be .3 and to cost something.
    """
    if not case.is_off(name):
        return False
    ratio = case.noise_ratio(name)
    if math.isnan(ratio):
        return case.is_costly and _find_largest_gap(case, name) > _LARGE
    return ratio > 3 or (case.is_costly and _is_biased(case, name))


def _is_biased(case: Case, name: str) -> bool:
    """Return whether variances are off by .3 (log), and not because batches have few values, as BN203 says."""
    view = case.find_view(name)
    if view is None or view.values <= FEW_VALUES:
        return False
    return abs(float(case.log_ratios(name).nanmedian())) > _LARGE


def compare_with_chance(case: Case, layers: Sequence[str]) -> str:
    """Write how much farther off the averages of layers are than chance explains."""
    ratios = [case.noise_ratio(name) for name in layers]
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    if known:
        return f"{tell_number(median(known), 2)} times farther off than chance explains"
    gap = max(_find_largest_gap(case, name) for name in layers)
    return f"off by up to {gap:.2g} (σ, or log variance); too few batches to tell chance"


def _find_largest_gap(case: Case, name: str) -> float:
    """Find the larger gap of a layer, in σ or log variance, from the training batches where these reach it."""
    reference = case.reference if name in case.reference else None
    return max(case.find_gap(name, reference))
