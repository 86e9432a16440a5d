"""What is measured on a trained network: functions `run, sources, steps -> frame`, one for each table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

NAMES = (
    "gaps",
    "evaluations",
    "drift",
    "precision",
    "traces",
    "histograms",
    "doses",
    "counterexamples",
    "last_batches",
    "within_epoch",
    "decomposition",
)  # of the tables, and of a module here with a function of that name


def measurement(name: str) -> Callable[..., Any]:
    """The function of (run, sources, steps) that gives the rows of the table `name`."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)  # type: ignore[no-any-return]


def needs_trace(name: str) -> bool:
    """Whether the table `name` has rows only of networks with batch norm, which have a trace."""
    return importlib.import_module(f"{__name__}.{name}").NEEDS_TRACE  # type: ignore[no-any-return]


def scope(name: str) -> Callable[..., Any]:
    """The function of (run, sources) that gives what the table `name` has rows of, with the steps of each."""
    return importlib.import_module(f"{__name__}.{name}").scope  # type: ignore[no-any-return]
