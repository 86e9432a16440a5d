"""BN209: the input is scaled or ordered otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.statistics import Statistics

_SCALE = 0.5  # log ratio of variances: the input's scale is off by 1.28
_SPREAD = 0.15  # over channels, of that log ratio; blur and noise make 0.27 and more
_LATER = 0.15  # gap of later layers, of that log ratio; blur and noise make 0.18 and more
_ORDER = 0.1  # distance of the first layer's averages as the channels are
_AGREES = 0.5  # of that, with the channels reversed


class OtherInput(Rule):
    """The first layer's averages fit the images once these are scaled, or their channels are reversed.

    Scaled: its variances are off by the same factor in all channels, while later layers, which see what it has
    normalized, agree. Reversed: the first layer agrees better by more than half on images with reversed channels.
    Images of less contrast than in training look as if they were scaled.
    """

    code = "BN209"
    title = "input scaled or ordered otherwise"
    meaning = "The images are prepared otherwise than in training, which recalibration would hide."
    remedy = "Mend the preprocessing (range, mean and standard deviation, RGB or BGR); do not recalibrate."
    hides = True
    asks = ("training",)
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        first, *later = case.data.exact  # by depth
        told = _tell_scale(case, first, later) or _tell_order(case, first)
        return None if told is None else Signs.of([first], told, at_least="warning")


def _tell_scale(case: Case, first: str, later: Sequence[str]) -> str | None:
    """Tell by how much the input is scaled; None if it is not."""
    if case.remembers_start(first):
        return None
    _, running = case.buffers[first]
    ratios = (case.data.exact[first].var / running).log()
    ratios = ratios[ratios.isfinite()]  # without dead channels
    if len(ratios) < 2:
        return None
    scale = float(ratios.median())
    spread = float(ratios.std())
    later_gap = median(max(case.find_gap(name)) for name in later) if later else 0.0

    is_constant = abs(scale) > _SCALE and spread < _SPREAD * abs(scale)
    if not is_constant or not later_gap < _LATER * abs(scale):
        return None
    return f"standard deviations {math.exp(scale / 2):.3g} times the running ones in all channels of the first layer"


def _tell_order(case: Case, first: str) -> str | None:
    """Tell how much better the first layer agrees with reversed channels; None if it does not."""
    if case.data.flipped is None:
        return None
    flipped, straight = case.data.flipped
    distance = _find_distance(case, first, straight)
    flipped_distance = _find_distance(case, first, flipped)

    is_by_chance = distance < 4 * case.find_expected_gap(first) or distance < 4 * case.find_sampling_error(first)
    is_better = distance > _ORDER and flipped_distance < _AGREES * distance
    if is_by_chance or not is_better:
        return None
    return f"first layer's averages {distance:.2f} off, {flipped_distance:.2f} with the images' channels reversed"


def _find_distance(case: Case, first: str, reference: Statistics) -> float:
    """Find how far averages are off, in σ: means and variances together, each as noisy as the other."""
    mean_gap, var_gap = case.find_gap(first, reference)
    return math.hypot(mean_gap, var_gap / math.sqrt(2))
