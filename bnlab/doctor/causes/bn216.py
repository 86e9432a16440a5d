"""BN216: evaluations of the same images differ."""

from __future__ import annotations

import math

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.probe import DIFFERENT

_LEAST = 0.01  # of σ or of the variance: rounding, and kernels that are not deterministic, make less


class EvaluationsDiffer(Cause):
    """Exact statistics that fail their check by more than 1% of σ or of the variance, also where they are measured
    layer by layer: an ordinary evaluation gives a layer another input than they were measured on.

    Observers of quantization do that, and any forward that changes buffers in eval mode. Predictions that differ when
    the same batch is run twice are BN211, unless a forward changes buffers.

    A false alarm where a forward draws random numbers that hardly show in the model's output.
    """

    code = "BN216"
    title = "evaluations of the same images differ"
    meaning = (
        "Something in the model changes, or is drawn, in each forward in eval mode, so that no statistics are exact "
        "and scores are not reliable."
    )
    remedy = (
        "Turn it off in eval mode (observers of quantization: model.apply(torch.ao.quantization.disable_observer)), "
        "then diagnose again."
    )
    severity = "error"
    kind = "network"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        check = case.data.exact.check
        is_random = case.data.probe.twice > DIFFERENT
        if check is None or check.is_exact or check.off <= _LEAST or check.layer is None or is_random:
            return None
        told = f"another input, by {check.off:.2g} of σ or of the variance"
        if math.isinf(check.off):
            told = "calls in another order, or values that cannot be compared"
        return Signs.of([check.layer], f"an evaluation gives {check.layer!r} {told}")
