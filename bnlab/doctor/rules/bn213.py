"""BN213: the averages fit these images once they are scaled and shifted."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Severity, Signs

_LARGE = 0.3  # from which on it is a warning whatever it costs: bad images cost nothing more under bad averages
_OFF = 0.1  # distance of the first layer's averages on the images as they are
_MENDED = 0.1  # of that, on the images once they are scaled and shifted
_FITS = 0.3  # distance, from which on averages do not fit, however much farther off they were


class Rescaled(Rule):
    """The first layer's averages are .1 σ off or more, means and variances together, and ten times nearer and
    within .3 σ once the images are scaled, and each colour is shifted.

    The layer has to have two channels for each number that is fitted. Other weights, as in a network that was
    averaged, do not look so, because one scale and a shift for each colour do not fit all channels of another
    convolution. Images of another brightness or contrast do: whether they were prepared otherwise or taken otherwise,
    nobody can tell from the averages. Averages of two kinds of images in turn lie between both, and look so as well.
    """

    code = "BN213"
    title = "images scaled and shifted otherwise"
    meaning = "The averages are of images with another brightness or scale, as where only training has Normalize."
    remedy = (
        "Compare the transforms of training and evaluation; if they agree, other images went through in train(), and "
        "recalibration on those that you evaluate is right."
    )
    asks = ("training",)
    needs = ("data",)
    explains_bad = True
    unless = ("BN001", "BN002", "BN207", "BN209", "BN210", "BN215")

    def look(self, case: Case) -> Signs | None:
        data = case.data
        rescaling = data.rescaling
        first = next(iter(data.exact))
        if rescaling is None or first not in case.layers or case.remembers_start(first):
            return None

        distance = case.find_distance(first, data.changed["as they are"])
        chance = max(case.find_expected_gap(first), case.find_sampling_error(first))
        if distance < _OFF or distance < 4 * chance:
            return None

        near = min(_MENDED * distance, _FITS)
        mended = case.find_distance(first, rescaling.statistics)
        if mended > near:
            return None
        if case.training is not None and first in case.training:
            of_training = case.find_distance(first, case.training)
            if of_training > near:
                return None  # the averages are not of the training batches either

        at_least: Severity = "warning" if distance >= _LARGE else "note"
        behind = [name for name in case.seen if name != first and case.is_off(name)]
        told = f"first layer's averages {distance:.2g} σ off, {mended:.2g} σ on {rescaling}"
        return Signs.of([first, *behind], told, at_least)
