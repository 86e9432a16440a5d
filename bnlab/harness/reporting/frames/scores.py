"""Scores: the rows of a table, compared with a reference, and averaged over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames.comparisons import list_differing, paired
from bnlab.harness.reporting.frames.means import interval
from bnlab.harness.reporting.frames.selection import Tables, rows, select

Score = Callable[[Tables], pd.DataFrame]
"""A function of the tables that returns the frame of `interval`."""


def score(
    source: str | Score,
    value: str,
    by: Sequence[str],
    *,
    at: float | Sequence[float] = (),
    against: Any = None,
    along: str = "estimator",
    matching: Sequence[str] = ("run",),
    ratio: bool = False,
    average: str | Sequence[str] | None = None,
    scale: float = 1,
    geometric: bool = False,
    **wanted: Any,
) -> Score:
    """Declare a score of one value: `rows`, `paired` if there is a reference, and `interval`, one after the other.

    Args:
        source: the name of a table, of which `rows` are taken, or a function of the tables that gives other rows.
        value, by, average, scale, geometric: see `interval`.
        at: shares of the training, of a table, see `rows`; its networks may differ in the settings among `by`, or else
            in their batch size.
        against, along, matching, ratio: the reference, see `paired`; None: nothing is compared.
        wanted: see `select`. With a reference both sides of a comparison have these values, but in the columns in which
            they differ: estimator and momentum, where estimators are compared. There the reference is `against`, and
            `wanted` is what is compared with it.
    """
    is_compared = against is not None
    differing = list_differing(along) if is_compared else ()
    of_both: dict[str, Any] = {}
    of_one: dict[str, Any] = {}
    for column, values in wanted.items():
        if column in differing:
            of_one[column] = values
        else:
            of_both[column] = values

    def compute(tables: Tables) -> pd.DataFrame:
        frame = _take_rows(tables, source, at, by, of_both)
        if is_compared:
            pairs = paired(frame, value, against, along=along, matching=matching, ratio=ratio)
            frame = select(pairs, **of_one)
        return interval(frame, value, by, average=average, scale=scale, geometric=geometric)

    return compute


def _take_rows(
    tables: Tables,
    source: str | Score,
    at: float | Sequence[float],
    by: Sequence[str],
    wanted: dict[str, Any],
) -> pd.DataFrame:
    """Take the rows of a table, or those that a function makes of the tables."""
    if not isinstance(source, str):
        made = source(tables)
        return select(made, **wanted)

    table = tables.get(source, pd.DataFrame())
    settings = [column for column in by if column != "panel" and column not in table]
    if not settings:
        settings = ["batch_size"]
    return rows(tables, source, at, settings, **wanted)
