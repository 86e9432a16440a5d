"""In which settings results differ from those that an experiment's captions and claims were written for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import RESULTS, name_value

# What follows from other settings, or is there under their own, dotted name too.
_DERIVED = {"run", "seed", "steps", "lr_effective", "norm_batch_size", *RESULTS}
_TWINS = {"data", "model", "norm", "optimizer", "lr", "lr_scaling", "sgd_momentum", "weight_decay", "schedule"}
_MOST = 5  # that are named


def describe_changes(tables: Mapping[str, pd.DataFrame], own: Mapping[str, pd.DataFrame]) -> str:
    """A sentence on settings and momenta that the experiment's own tables do not have; empty if there are none.

    Momenta that are missing count too: the best one of fewer is another.

    Args:
        tables: the results.
        own: the reference tables of the experiment.
    """
    found = [*_list_settings(tables["runs"], own["runs"]), *_list_momenta(tables, own)]
    if not found:
        return ""
    named = ", ".join([*found[:_MOST], *([f"{len(found) - _MOST} more"] if len(found) > _MOST else [])])
    return (
        f"Other than in this question's own sweep: {named}. What captions and claims take for given is of that sweep."
    )


def _list_settings(runs: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    columns = [str(column) for column in runs if column in own and column not in _DERIVED | _TWINS]
    found = []
    for column in sorted(columns, key=lambda column: not column.endswith(".name")):
        known = {*own[column].dropna()}
        found += [_name(column, value) for value in _list_values(runs[column]) if value not in known]
    return found


def _list_momenta(tables: Mapping[str, pd.DataFrame], own: Mapping[str, pd.DataFrame]) -> list[str]:
    """Those of all tables that both have."""
    ours, theirs = (
        {value for table in own if table in tables for value in _list_values(side[table].get("momentum", pd.Series()))}
        for side in (tables, own)
    )
    missing = len(theirs - ours)
    fewer = [f"{missing} moment{'a' if missing > 1 else 'um'} fewer"] if missing else []
    return [*(_name("momentum", value) for value in sorted(ours - theirs)), *fewer]


def _list_values(column: pd.Series) -> list[Any]:
    return list(column.dropna().drop_duplicates())


def _name(column: str, value: Any) -> str:
    return name_value(column.removesuffix(".name"), f"{value:g}" if isinstance(value, float) else value)
