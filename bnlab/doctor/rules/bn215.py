"""BN215: all averages are the right ones times one factor."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.doctor.words import tell_number

_LEAST = math.log(1.5)  # of the factor or its inverse
_MENDED = 0.1  # of a layer's distance, once its averages are divided by the factor
_FITS = 0.3  # σ


class Multiplied(Rule):
    """Running means and variances of all layers, two or more, are those of the data times one factor of 1.5 or more, or
    its inverse: divided by it, each layer is ten times nearer and within .3 σ.

    Caffe stores sums, and beside them what to divide them by; a converter that leaves this out makes averages that are
    up to 1,000 times too large. Images on another scale do not look so: they change variances by its square, and the
    first layer alone, as the others follow normalized ones. An average that began at 0 and was not divided by the
    weight of its batches is too small by one factor likewise.

    No false alarm is known: averages of other images or weights are off by another factor in each channel.
    """

    code = "BN215"
    title = "averages times one factor"
    meaning = "Means and variances are right but for one factor, as where a converter left out what to divide by."
    remedy = "Divide both by it where they are converted or loaded; bnlab.recalibrate mends this copy."
    needs = ("data",)
    explains_bad = True
    unless = ("BN001",)

    def look(self, case: Case) -> Signs | None:
        names = [name for name in case.seen if name in case.reference]
        if len(names) < 2:
            return None
        log_factor = median(_find_log_factor(case, name) for name in names)
        if not abs(log_factor) > _LEAST:
            return None

        factor = math.exp(log_factor)
        divided = replace(case, buffers={name: case.buffers[name] / factor for name in names})
        for name in names:
            distance = case.find_distance(name, case.reference)
            if not divided.find_distance(name, case.reference) <= min(_MENDED * distance, _FITS):
                return None
        images = "these images" if case.training is None else "the training batches"
        told = f"means and variances are {tell_number(factor)} times those of {images}"
        return Signs.of(names, told)


def _find_log_factor(case: Case, name: str) -> float:
    """Find the log ratio of a layer's running variances to the exact ones, median over channels."""
    return float(case.log_ratios(name, case.reference).nanmedian())
