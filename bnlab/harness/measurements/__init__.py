"""What is measured on a trained network: functions `run, settings, steps -> frame`, one for each table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

NAMES = ("gaps", "evaluations", "drift")  # of the tables, and of a module here with a function of that name


def measurement(name: str) -> Callable[..., Any]:
    """The function of (run, settings, steps) that gives the rows of the table `name`."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)  # type: ignore[no-any-return]


def scope(name: str) -> Callable[..., Any]:
    """The function of (run, settings) that gives those that the table `name` has rows of, and the steps."""
    return importlib.import_module(f"{__name__}.{name}").scope  # type: ignore[no-any-return]
