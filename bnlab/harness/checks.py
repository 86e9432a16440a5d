"""Checks of single settings, each with a message that names the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

from bnlab.harness.errors import UserError


def require_one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raise UserError unless the setting is one of these values."""
    known = list(allowed)
    if value not in known:
        raise UserError(f"{key}={value}: must be one of {', '.join(map(str, known))}")


def require_within(key: str, value: float, low: float, high: float = float("inf"), reason: str = "") -> None:
    """Raise UserError unless low ≤ value ≤ high.

    Args:
        key: the setting.
        value: its value.
        low: the smallest value.
        high: the largest value; below `low` where no value is possible, as for a batch size and very few images.
        reason: why these are the bounds.
    """
    if low <= value <= high:
        return
    bounds = f"{low:,} to {high:,}"
    if high == float("inf"):
        bounds = f"{low:,} or more"
    elif high < low:
        bounds = f"at least {low:,}, but at most {high:,} is possible"
    because = f" ({reason})" if reason else ""
    raise UserError(f"{key}={value}: must be {bounds}{because}")
