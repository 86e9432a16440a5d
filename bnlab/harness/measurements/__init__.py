"""What is measured on a trained network: functions `run, sources, steps -> frame`, one for each table."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from bnlab.harness.artifacts import norms
from bnlab.harness.components import COMPONENTS

_NORMS = COMPONENTS[norms.Norm.group]
ALL = tuple(_NORMS)
RECORDED = tuple(name for name, norm in _NORMS.items() if norm.uses_batch)
_BATCHES = tuple(name for name, norm in _NORMS.items() if norm.takes_batch_whole)
_PLAIN = tuple(name for name, norm in _NORMS.items() if norm.is_plain)
NORMS = {
    "gaps": RECORDED,
    "evaluations": ALL,
    "drift": _BATCHES,
    "traces": RECORDED,
    "doses": RECORDED,
    "counterexamples": _BATCHES,
    "last_batches": _BATCHES,
    "within_epoch": _PLAIN,
    "decomposition": _PLAIN,
    "log": ALL,
}
"""Of the networks that each table has rows of; the module and the function of the table's name measure it."""
NAMES = tuple(NORMS)


def find_measurement(name: str) -> Callable[..., Any]:
    """The function of (run, sources, steps) that gives the rows of the table `name`."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)  # type: ignore[no-any-return]


def find_scope(name: str) -> Callable[..., Any]:
    """The function of (run, sources) that gives what the table `name` has rows of, with the steps of each."""
    return importlib.import_module(f"{__name__}.{name}").scope  # type: ignore[no-any-return]


def find_reads(name: str) -> Callable[..., list[int]]:
    """The function of (run, sources) that gives the steps whose checkpoints the measurement of the table reads."""
    return importlib.import_module(f"{__name__}.{name}").reads  # type: ignore[no-any-return]


def list_read(run: Any, names: Iterable[str], sources: list[Any]) -> list[int]:
    """The steps whose checkpoints are read by the measurements of these tables."""
    return sorted({step for name in names for step in find_reads(name)(run, sources)})


def is_of_batches(name: str) -> bool:
    """Whether the table `name` is about what the batches before a step make of running averages."""
    return NORMS[name] in (_BATCHES, _PLAIN)
