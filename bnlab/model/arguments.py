"""Arguments of public calls: what is wrong with one is said before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any


def require_number(value: Any, fine: Callable[[Any], bool], message: str, kind: type = Real) -> None:
    """TypeError with `message` unless `value` is of this kind (a bool is no number), ValueError unless it is fine."""
    # In Python a bool is an integer, but `images=True` is a mistake.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(message)
    if not fine(value):
        raise ValueError(message)


def require_count(value: Any, message: str) -> None:
    """TypeError with `message` unless `value` is an integer, ValueError unless it is 1 or more."""
    require_number(value, lambda count: count >= 1, message, kind=Integral)
