"""The usual score: rows, their comparison with a reference if there is one, and their intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames.averages import check_mixed, interval, list_columns
from bnlab.harness.reporting.frames.comparisons import SAME_NETWORK, paired
from bnlab.harness.reporting.frames.networks import rows
from bnlab.harness.reporting.frames.selection import select

Rows = Callable[[Mapping[str, pd.DataFrame]], pd.DataFrame]
"""A function of the tables of an experiment."""


def score(
    source: str | Rows,
    value: str,
    by: Sequence[str],
    *,
    at: float | Sequence[float] = (),
    against: Any = None,
    along: str = "estimator",
    matching: Sequence[str] = SAME_NETWORK,
    ratio: bool = False,
    average: str | Sequence[str] | None = None,
    scale: float = 1,
    geometric: bool = False,
    **wanted: Any,
) -> Rows:
    """A score of one value: `rows`, the comparison with a reference if there is one, `interval`.

    Args:
        source: the name of a table, of which `rows` are taken, or a function of the tables that gives other rows.
        at: shares of the training, of a table, see `rows`; its networks may differ in the settings among `by`, or else
            in their batch size.
        value, by, average, scale, geometric: see `interval`.
        against, along, matching, ratio: the reference, see `paired`; it need not be among the wanted.
        wanted: see `select`; with a reference, values of `along`, and of `momentum` where that is the estimator, choose
            among the rows that have been compared with it.

    Returns:
        A function of the tables that returns the frame of `interval`. It raises UserError where one seed has rows of
        another estimator, momentum or step of a table than the next: their mean would mix them.

    Raises:
        ValueError: `at` beside a function, which chooses its rows itself.
    """
    if at and not isinstance(source, str):
        raise ValueError("score: at= chooses rows of a table; a function chooses its rows itself")
    later = () if against is None else (along, "momentum") if along == "estimator" else (along,)
    compared = {key: wanted.pop(key) for key in later if key in wanted}

    def compute(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        if isinstance(source, str):
            settings = [key for key in by if key not in tables[source] and key != "panel"]
            frame = rows(tables, source, at, settings or ["batch_size"], **wanted)
        else:
            frame = select(source(tables), **wanted)
        if against is not None:
            frame = select(paired(frame, value, against, along=along, matching=matching, ratio=ratio), **compared)
        intervals = interval(frame, value, by, average=average, scale=scale, geometric=geometric)
        # After it, as several rows of one seed have a message of their own; a function may choose by seed.
        if isinstance(source, str):
            over = list_columns(average)
            steps = () if at or "epoch" in (*by, *over) else ("step",)
            check_mixed(frame, by, ("estimator", "momentum", *steps), over)
        return intervals

    return compute
