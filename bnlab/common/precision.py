"""Numbers in float64, also of a device that has none."""

from __future__ import annotations

from torch import Tensor


def to_float64(values: Tensor) -> Tensor:
    """Convert numbers to float64 on their device; on the CPU if their device has none, as that of a Mac."""
    if values.device.type == "mps":
        values = values.cpu()
    return values.double()
