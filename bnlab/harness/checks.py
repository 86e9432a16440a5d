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
    message = f"{key}={value}: must be {_describe_bounds(low, high)}"
    if reason:
        message += f" ({reason})"
    raise UserError(message)


def _describe_bounds(low: float, high: float) -> str:
    if high == float("inf"):
        return f"{low:,} or more"
    if high < low:
        return f"at least {low:,}, but at most {high:,} is possible"
    return f"{low:,} to {high:,}"


def require_weight(key: str, value: object) -> None:
    """Raise UserError unless the value can be the weight of a new batch: above 0 and at most 1."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(f"{key}={value}: is the weight of the new batch; must be above 0 and at most 1")
