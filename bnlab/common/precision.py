"""Numbers in float64, also of a device that has none."""

from __future__ import annotations

from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """Give numbers in float64, on their device; on the CPU where they are on that of a Mac, which has no float64."""
    if values.device.type == "mps":
        values = values.cpu()
    return values.double()
