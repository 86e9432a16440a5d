"""What is measured on a trained network: functions `run -> frame`, one for each table, cached with the run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

NAMES = ("gaps", "evaluations", "drift")  # of the tables, and of a module here with a function of that name


def measurement(name: str) -> Callable[..., Any]:
    """The function of (run, settings) that gives the rows of the table `name`."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)  # type: ignore[no-any-return]
