"""BN207: other data than in training."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.statistics import Statistics

_FIRST = 0.3  # of the first layer; augmentation changes it less
_LATER = 0.1
_SURE = 4  # standard errors
_FARTHER = 3  # times: averages from these images than from the training batches


class OtherData(Rule):
    """The averages agree with the training batches, and from the first layer on not with these images.

    Off is the larger of the mean's gap in σ and half the log ratio of the variances, which is that of σ. In the first
    layer it has to be 0.3, more than the usual augmentation does, and three times that from the training batches. It is
    a warning at least, as recalibration on these images may be no remedy.

    Where exact statistics score better, a mean that is off by four standard errors (images are the units) is enough,
    and the cost says how severe it is. Without a cost, that is no more than the augmentation of training.
    """

    code = "BN207"
    title = "other data than in training"
    meaning = "The averages are right for the training batches; these images are of another population."
    remedy = "Check the preprocessing; if the domain has changed, adapt knowingly: bnlab.recalibrate on these images."
    severity = "note"
    needs = ("data", "training")
    explains_bad = True

    def look(self, case: Case) -> Signs | None:
        seen = case.seen
        layers = [name for name in seen if _differs(case, name)]
        first = seen[0]
        here = _find_off(case, first, case.data.exact)
        there = _find_off(case, first, case.reference)
        told = f"first layer {here:.2f} σ off on these images, {there:.2f} σ on the training batches"

        are_most = 2 * len(layers) >= len(seen)
        if here >= _FIRST and first in layers and are_most:
            return Signs.of(layers, told, at_least="warning")

        if case.is_costly and _is_shifted(case, first):
            later = [name for name in layers if name != first]
            return Signs.of([first, *later], told)
        return None


def _differs(case: Case, name: str) -> bool:
    """Return whether a layer's averages are off on these images, not by chance, and not on the training batches."""
    if name not in case.reference:
        return False
    here = _find_off(case, name, case.data.exact)
    there = _find_off(case, name, case.reference)
    if not (here > _LATER and here > _FARTHER * there):
        return False

    chance = _SURE * case.find_sampling_error(name)
    return not here < chance  # not known to be by chance, where the error is NaN


def _is_shifted(case: Case, name: str) -> bool:
    """Return whether a layer's mean surely differs from that of the training batches, and the averages do not."""
    if name not in case.reference:
        return False
    here, _ = case.find_gap(name)
    there, _ = case.find_gap(name, case.reference)
    chance = _SURE * case.find_difference_error(name)
    return here > _FARTHER * there and here > chance


def _find_off(case: Case, name: str, reference: Statistics) -> float:
    mean_gap, var_gap = case.find_gap(name, reference)
    return max(mean_gap, var_gap / 2)
