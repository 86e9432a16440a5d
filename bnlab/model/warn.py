"""Warnings that point at the user's own line."""

from __future__ import annotations

import inspect
import warnings

# A frame of contextlib lies between one of our context managers and the user's `with`.
_PASSED = ("bnlab", "contextlib")  # packages whose lines are not the user's


def warn(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn, at the first line on the way out of bnlab."""
    # Each frame between this function and the user's code is one level.
    # `skip_file_prefixes` of `warnings.warn` would do this, but needs Python 3.12.
    level = 1
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        frame = frame.f_back
        level += 1
    warnings.warn(text, category, stacklevel=level)
