"""BN001: values that are not finite, or negative variances."""

from __future__ import annotations

from torch import Tensor

from bnlab.doctor.case import Case, has_bad_values
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.examination import has_overflown


class NotFinite(Cause):
    """A running mean or variance that is NaN or infinite, or a variance below 0.

    Never a false alarm. One batch with a NaN, or one that overflows float16, is enough: an average never forgets it.
    The first layer in depth is where to look; those behind it were given its output.
    """

    code = "BN001"
    title = "not finite, or a negative variance"
    meaning = "One bad batch has spoiled the averages for good, and in eval mode all that comes after them."
    remedy = "Recalibrate, and look for the batch, an overflow or the tool that wrote this."
    severity = "error"

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: is_spoiled(case, name))
        if not layers:
            return None
        first = layers[0]
        bad_values = _describe(case.buffers[first])
        return Signs(tuple(layers), f"{bad_values} of {first!r}, the first in depth")


def is_spoiled(case: Case, name: str) -> bool:
    """Return whether a layer's averages are not finite or negative, and not because their type ends before."""
    return has_bad_values(case.buffers[name]) and not has_overflown(case.layers[name])


def _describe(buffers: Tensor) -> str:
    """Write how many channels of a layer's buffers [2, C] have which bad value."""
    is_finite = buffers.isfinite().all(0)
    is_negative = buffers[1] < 0
    told = []
    if not is_finite.all():
        told.append(f"not finite in {int((~is_finite).sum())}")
    if is_negative.any():
        told.append(f"negative in {int(is_negative.sum())}")
    channels = buffers.shape[1]
    return f"{' and '.join(told)} of {channels} channels"
