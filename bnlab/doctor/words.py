"""Words of verdicts, and numbers of evidence."""

from __future__ import annotations

import math

HEADLINES = {
    "averages": "The averages are at fault",
    "averages or images": "The averages are at fault, or the images",
    "images": "The images are at fault, not the averages",
    "network": "The network is at fault, not the averages",
    "mode": "The mode is at fault, not the averages",
    "batches": "The batches are at fault: no single set of averages helps",
    "healthy": "Healthy averages",
    "undecided": "Undecided",
}
"""Verdict → how an answer begins."""


def count_things(count: int, thing: str) -> str:
    """Write a number of things: "1 update", "2,000 updates"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def tell_number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits and no exponent where it is large: "0.0312", "1.3", "1,340"."""
    told = f"{value:z.{digits}g}"
    is_large = math.isfinite(value) and abs(float(told)) >= 10**digits
    return f"{float(told):,.0f}" if is_large else told
