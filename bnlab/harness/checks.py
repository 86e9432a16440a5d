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
    if not low <= value <= high:
        span = f"{low:,} or more" if high == float("inf") else f"{low:,} to {high:,}"
        raise UserError(f"{key}={value}: must be {span}{f' ({reason})' if reason else ''}")


def require_weight(key: str, value: object) -> None:
    """UserError unless the value can be the weight of a new batch."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(f"{key}={value}: is the weight of the new batch; must be above 0 and at most 1")
