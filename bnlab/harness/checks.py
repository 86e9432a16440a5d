"""Checks of single settings, each with a message that names the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

from bnlab.harness.errors import UserError


def require_one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """UserError unless the setting is one of these."""
    known = list(allowed)
    if value not in known:
        raise UserError(f"{key}={value}: must be one of {', '.join(map(str, known))}")


def require_within(key: str, value: float, low: float, high: float = float("inf"), reason: str = "") -> None:
    """UserError unless low ≤ value ≤ high, with the reason for these bounds."""
    if low <= value <= high:
        return
    if high == float("inf"):
        span = f"must be {low:,} or more"
    elif high < low:
        span = f"must be at least {low:,}, but at most {high:,} is possible"
    else:
        span = f"must be {low:,} to {high:,}"
    because = f" ({reason})" if reason else ""
    raise UserError(f"{key}={value}: {span}{because}")


def require_weight(key: str, value: object) -> None:
    """UserError unless the value can be the weight of a new batch."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(f"{key}={value}: is the weight of the new batch; must be above 0 and at most 1")
