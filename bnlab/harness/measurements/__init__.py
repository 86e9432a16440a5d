"""What is measured on a trained network: functions `run, sources, steps -> frame`, one for each table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAMES = (
    "gaps",
    "evaluations",
    "drift",
    "traces",
    "doses",
    "counterexamples",
    "last_batches",
    "within_epoch",
    "decomposition",
    "log",
)
"""Of the tables, each measured by the module and the function of the same name."""


def find_measurement(name: str) -> Callable[..., Any]:
    """The function of (run, sources, steps) that gives the rows of the table `name`."""
    return getattr(_import(name), name)  # type: ignore[no-any-return]


def find_norms(name: str) -> tuple[str, ...]:
    """The norms of the networks that the table `name` has rows of."""
    return _import(name).NORMS  # type: ignore[no-any-return]


def is_of_batches(name: str) -> bool:
    """Whether the table `name` is about what the batches before a step make of running averages."""
    return getattr(_import(name), "OF_BATCHES", False)


def find_scope(name: str) -> Callable[..., Any]:
    """The function of (run, sources) that gives what the table `name` has rows of, with the steps of each."""
    return _import(name).scope  # type: ignore[no-any-return]


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
