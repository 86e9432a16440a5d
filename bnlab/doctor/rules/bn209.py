"""BN209: the input is scaled or ordered otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from bnlab.doctor.case import Case
from bnlab.doctor.images import OUTLYING
from bnlab.doctor.rule import Rule, Signs

_SCALE = 0.5  # log ratio of variances: the input's scale is off by 1.28
_SPREAD = 0.15  # over channels, of that log ratio; blur and noise make 0.27 and more
_LATER = 0.15  # gap of later layers, of that log ratio; blur and noise make 0.18 and more
_AMONG = 2.0  # standard deviations over training batches; of two kinds, one in five or more is nearer
_OFF = 0.1  # distance of the first layer's averages on the images as they are
_REVERSED = 0.5  # of that, with the channels reversed
_NEGATIVE = 0.2  # of that, on the negative: images that are brighter or darker come near it too


class OtherInput(Rule):
    """The first layer's averages fit the images once these are scaled, their channels reversed, or they are negatives.

    Scaled: its variances are off by the same factor in all channels, while later layers, which see what it has
    normalized, agree. Reversed: the first layer agrees better by more than half on images with reversed channels.
    Negative: it agrees five times better on the images' negative.

    Images of less contrast than in training look as if they were scaled, and darker or brighter ones may look like
    negatives. One outlying training image looks like a scale as well: pass training_batches=. Where these have one, or
    are scaled as the images are, or some of them, no scale is found.
    """

    code = "BN209"
    title = "input scaled or ordered otherwise"
    meaning = "These images, or some of training's, are prepared otherwise, which recalibration would hide."
    remedy = (
        "Compare the preprocessing of both first: range, mean and standard deviation, RGB or BGR, black on white; do "
        "not recalibrate before."
    )
    hides = True
    asks = ("training",)
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        first, *later = case.data.exact  # by depth
        told = _tell_scale(case, first, later) or _tell_change(case, first)
        return None if told is None else Signs.of([first], told, at_least="warning")


def _tell_scale(case: Case, first: str, later: Sequence[str]) -> str | None:
    """Tell by how much the input is scaled; None if it is not."""
    if case.remembers_start(first) or _is_explained_by_training(case, first):
        return None

    _, running = case.buffers[first]
    quotients = case.data.exact[first].var / running
    ratios = quotients.log()
    ratios = ratios[ratios.isfinite()]  # without dead channels
    if len(ratios) < 2:
        return None

    scale = float(ratios.median())
    spread = float(ratios.std())
    size = abs(scale)
    is_constant = size > _SCALE and spread < _SPREAD * size
    if not is_constant:
        return None

    later_gaps = [max(case.find_gap(name)) for name in later]
    later_gap = median(later_gaps) if later_gaps else 0.0
    others_agree = later_gap < _LATER * size
    if not others_agree:
        return None
    times = math.exp(scale / 2)
    return f"standard deviations {times:.3g} times the running ones in all channels of the first layer"


def _is_explained_by_training(case: Case, first: str) -> bool:
    """Return whether training batches have an outlying image, or are scaled as the images are, or some of them."""
    training = case.training
    if training is None or first not in training:
        return False
    outlier = case.outlier
    if outlier is not None and outlier.ratio > OUTLYING:
        return True

    quotients = case.data.exact[first].var / training[first].var
    ratio = float(quotients.log().nanmedian())
    if abs(ratio) < _SCALE:
        return True
    return _is_among_training(case, first)


def _is_among_training(case: Case, first: str) -> bool:
    """Return whether the images differ from the average training batch by what these differ from each other."""
    view = None if case.training_view is None else case.training_view.layers.get(first)
    if view is None:
        return False

    moments = case.data.exact[first]
    squares = moments.var + (moments.mean - view.center).square()
    of_batches = view.batch_squares
    distance = (squares - of_batches.mean).abs()
    off = distance / of_batches.var.sqrt()
    return float(off.nanmedian()) < _AMONG


def _tell_change(case: Case, first: str) -> str | None:
    """Tell how much better the first layer agrees with changed images; None if it does not."""
    changed = case.data.changed
    if not changed:
        return None
    distance = case.find_distance(first, changed["as they are"])
    if distance < 4 * case.find_expected_gap(first) or distance < 4 * case.find_sampling_error(first):
        return None  # by chance
    if not distance > _OFF:
        return None

    told = {"reversed": (_REVERSED, "with the images' channels reversed"), "negative": (_NEGATIVE, "on their negative")}
    for change, (most, words) in told.items():
        if change in changed:
            changed_distance = case.find_distance(first, changed[change])
            if changed_distance < most * distance:
                return f"first layer's averages {distance:.2g} σ off, {changed_distance:.2g} σ {words}"
    return None
