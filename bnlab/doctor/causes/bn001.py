"""BN001: values that are not finite, or negative variances."""

from __future__ import annotations

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
        spoiled = case.select(lambda name: has_bad_values(case.buffers[name]))
        # A variance beyond the layer's type is another fault.
        layers = [name for name in spoiled if not has_overflown(case.layers[name])]
        if not layers:
            return None
        first = layers[0]
        buffers = case.buffers[first]
        is_finite = buffers.isfinite().all(0)
        counts = {
            "not finite": int((~is_finite).sum()),
            "negative": int((buffers[1] < 0).sum()),
        }
        told = " and ".join(f"{what} in {count}" for what, count in counts.items() if count)
        channels = buffers.shape[1]
        return Signs.of(layers, f"{told} of {channels} channels of {first!r}, the first in depth")
