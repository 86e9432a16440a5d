"""Accuracies of networks that are normalized in several ways, under what they hold and under exact statistics."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bnlab.harness.reporting.experiment import Tables
from bnlab.harness.reporting.frames import paired, rows

BATCH, RENORM, GROUP, LAYER, INSTANCE = "batch norm", "batch renorm", "group norm", "layer norm", "instance norm"
GAIN_CONTROL, NONE = "gain control", "no norm"
NAMES = {
    "batch": BATCH,
    "renorm": RENORM,
    "group": GROUP,
    "layer": LAYER,
    "instance": INSTANCE,
    "gain_control": GAIN_CONTROL,
    "none": NONE,
}
EXACT = ", exact statistics"
STATISTICS = ("ema", "none", "exact")  # estimators; `none` is in the rows of networks that have no statistics


def find_accuracies(tables: Tables, shares: Sequence[float], by: Sequence[str]) -> pd.DataFrame:
    """Accuracies, in the order of `NAMES`, with a column `normalizer`: the norm, and whether statistics are exact.

    Args:
        tables: the tables of an experiment.
        shares, by: see `rows`; the norm is among `by` without being named.
    """
    frame = rows(tables, "evaluations", shares, ("norm.name", *by), estimator=STATISTICS)
    names = frame["norm.name"].replace(NAMES)
    exact = frame["estimator"].eq("exact").map({True: EXACT, False: ""})
    order = names.map({name: place for place, name in enumerate(NAMES.values())})
    named = frame.assign(normalizer=names + exact).drop(columns=["estimator", "momentum"])
    return named.loc[order.sort_values(kind="stable").index]


def compare(tables: Tables, against: str, shares: Sequence[float], by: Sequence[str]) -> pd.DataFrame:
    """Accuracies minus that of this normalizer, in networks that agree in `by` and were trained from the same seed."""
    frame = find_accuracies(tables, shares, by)
    return paired(frame, "accuracy", against, along="normalizer", matching=("seed", *by))
