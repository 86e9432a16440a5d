"""BN215: all averages are the right ones times one factor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import EXPLAINS_ALL, FACTOR_SHOWS
from bnlab.doctor.undo import Undo, write_averages


class Multiplied(Cause):
    """Running means and variances of all layers are those of the data times one factor: divided by it they fit.

    Caffe stores sums, and beside them what to divide them by; a converter that leaves this out makes averages that are
    up to 1,000 times too large. An average that began at 0 and was not divided by the weight of its batches is too
    small likewise. Images on another scale change variances by its square, and the first layer alone.
    """

    code = "BN215"
    title = "averages times one factor"
    meaning = "Means and variances are right except for one factor, as when a converter left out the divisor."
    remedy = "Divide both by it where they are converted or loaded; bnlab.recalibrate repairs this copy."
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        names = [name for name in case.fold if name in case.layers]
        # The factor comes from variances alone. Whether means share it shows once both are divided.
        log_factor = median(float(case.log_ratios(name, case.fold).nanmedian()) for name in names)
        # Images of another scale change the first layer's averages too, but no others: it takes two layers.
        if not math.isfinite(log_factor) or abs(log_factor) < FACTOR_SHOWS or len(names) < 2:
            return
        factor = math.exp(log_factor)
        averages = {name: case.buffers[name] / factor for name in names}
        explains = case.measure_repaired(averages)
        if explains >= EXPLAINS_ALL:
            reported = f"means and variances are {describe_number(factor)} times what they should be"
            yield Undo(reported, tuple(names), 1, write_averages(case.layers, averages), explains=explains)
