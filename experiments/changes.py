"""In which settings results differ from those that an experiment's captions and claims were written for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from bnlab.harness.reporting.answer import USUAL, join_values
from bnlab.harness.reporting.frames import RESULTS, name_value
from bnlab.harness.schema import EARLIER_NAMES

# What follows from other settings, or is there under its dotted name too.
_DERIVED = {"run", "seed", "steps", "lr_effective", "norm_batch_size", *EARLIER_NAMES.values(), *RESULTS}
_MEASURED = ("momentum", "estimator", "statistics_split", "shift")
_MOST = 4  # numbers of a setting that are named; names all are


def describe_changes(tables: Mapping[str, pd.DataFrame], own: Mapping[str, pd.DataFrame]) -> str:
    """What an experiment's own tables do not have, and what they have that is missing, in words; empty if nothing.

    Settings of the networks, momenta, estimators and shifts of the images. Of a setting that is younger than the
    experiment's own tables these have the usual value.

    Args:
        tables: the results.
        own: the reference tables of the experiment.
    """
    new, missing = list[str](), list[str]()
    for column, ours, theirs in _pair_values(tables, own):
        if not (ours and theirs):  # it means nothing to one of them, or is younger
            continue
        new += _name(column, [value for value in ours if value not in theirs])
        if {*ours} & {*theirs}:  # otherwise the new ones say it
            missing += _name(column, [value for value in theirs if value not in ours])
    told = [f"Other than in this question's own sweep: {', '.join(new)}."] if new else []
    told += [f"Missing, of this question's own sweep: {', '.join(missing)}."] if missing else []
    return " ".join([*told, "Captions and claims were written for that sweep."]) if told else ""


def _pair_values(
    tables: Mapping[str, pd.DataFrame], own: Mapping[str, pd.DataFrame]
) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Columns with their values in the results and in the reference tables."""
    runs, known = tables["runs"], own["runs"]
    settings = [str(column) for column in runs if column not in _DERIVED]
    for column in sorted(settings, key=lambda column: not column.endswith(".name")):
        usual = [USUAL[column]] if column in USUAL and column not in known else []
        yield column, _list_values([runs], column), _list_values([known], column) or usual
    both = [table for table in own if table in tables]
    for column in _MEASURED:
        yield (
            column,
            _list_values([tables[table] for table in both], column),
            _list_values([own[table] for table in both], column),
        )


def _list_values(frames: list[pd.DataFrame], column: str) -> list[Any]:
    """In order, without those that a computer's rounding tells apart."""
    cells = [frame[column].dropna() for frame in frames if column in frame]
    values = pd.concat(cells).unique() if cells else []
    rounded = {float(f"{value:.9g}") if isinstance(value, float) else value for value in values}
    return sorted(rounded, key=lambda value: (isinstance(value, str), value))


def _name(column: str, values: list[Any]) -> list[str]:
    """The column with the values in one phrase; nothing without any."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(texts) > _MOST and not any(isinstance(value, str) for value in values):
        texts = [*texts[:_MOST], f"{len(texts) - _MOST} more"]
    return [name_value(column.removesuffix(".name"), join_values(texts))] if texts else []
