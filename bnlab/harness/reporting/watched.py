"""Figures of trainings that `bnlab.watch` has watched: what each has lost under running averages, from its history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bnlab.common.files import Unreadable
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.experiment import Figure, Tables
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.schema import read_frame

WATCHED = "watched"
"""The table of all histories."""
_NUMBERS = ("update", "running", "exact", "lost")
_UPDATES = Axis("updates")


def read_histories(paths: Sequence[Path]) -> Tables:
    """Read histories that `watch.history.to_parquet` has written, as one table with the column `line`, their names.

    A history is called by its file, or, where two files have the same name, by its path. Rows without exact statistics
    are left out; of several at one update the last one counts.

    Raises:
        UserError: a file is missing, is no history, or has no row with exact statistics.
    """
    stems = [path.stem for path in paths]
    names = stems if len({*stems}) == len(stems) else [str(path) for path in paths]
    histories = []
    for name, path in zip(names, paths, strict=True):
        history = _read_history(path).dropna(subset=["exact"])
        if history.empty:
            raise NoRows(f"{path}: no row of this history has exact statistics")
        if not np.isfinite(history["lost"]).any():
            raise NoRows(f"{path}: no validation under running averages gave a finite number")
        histories.append(history.drop_duplicates(["metric", "update"], keep="last").assign(line=name))
    # Drawing reads the settings of networks from `runs`; of a caller's trainings there are none.
    return {WATCHED: pd.concat(histories), "runs": pd.DataFrame(columns=["batch_size"])}


def _read_history(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise UserError(f"{path}: no such file; watch.history.to_parquet({str(path)!r}) writes it")
    try:
        history = read_frame(path)
    except Unreadable as error:
        advice = "watch.history.to_parquet(FILE) writes one"
        raise UserError(f"{path}: cannot be read as a history of bnlab.watch; {advice}") from error

    columns = {"metric", *_NUMBERS}
    missing = sorted(columns - {*history.columns})
    others = [column for column in _NUMBERS if column in history and not pd.api.types.is_numeric_dtype(history[column])]
    if missing or others:
        what = f"no column {missing[0]!r}" if missing else f"column {others[0]!r} has no numbers"
        raise UserError(f"{path}: no history of bnlab.watch ({what}); watch.history.to_parquet(FILE) writes one")
    return history


def declare_figures(tables: Tables) -> dict[str, Figure]:
    """Declare a figure for each metric, by the names of their files."""
    figures = {}
    for metric, rows in tables[WATCHED].groupby("metric", sort=False):
        name = f"lost_{re.sub(r'[^A-Za-z0-9]+', '_', str(metric))}"
        while name in figures:  # of metrics that differ in other characters
            name += "_"
        figures[name] = _declare(str(metric), rows)
    return figures


def _declare(metric: str, rows: pd.DataFrame) -> Figure:
    """Declare the figure of a metric: in points where all its values are shares, of which more is better."""
    # A score that is NaN or infinite says neither.
    numbers = rows[["running", "exact", "lost"]]
    known = numbers[np.isfinite(numbers).all(axis=1)]
    values = known[["running", "exact"]]
    are_within = bool(((values >= 0) & (values <= 1)).to_numpy().all())
    # The history does not say whether more is better, but the sign of what was lost does.
    is_higher_better = np.allclose(known["exact"] - known["running"], known["lost"])
    are_shares = len(known) > 0 and are_within and is_higher_better

    scale = 100 if are_shares else 1
    means = pd.DataFrame({"panel": metric, "line": rows["line"], "update": rows["update"]})
    means["mean"] = scale * rows["lost"]
    means[["low", "high"]] = np.nan  # one training has no interval
    # With n = 0 the caption says nothing of seeds.
    means["n"] = 0
    finite = means["mean"][np.isfinite(means["mean"])]
    # The axis reaches 0, with which each point is compared.
    low = min([0.0, *finite])
    high = max([0.0, *finite])
    left_out = len(means) - len(finite)
    means["mean"] = means["mean"].where(np.isfinite(means["mean"]))
    label = "points lost" if are_shares else "lost, in the metric's unit"
    limits = (1.1 * low, 1.1 * high) if low < high else None
    axis = Axis(label, limits)
    unit = "points" if are_shares else "the metric's unit"
    return Figure(
        "Lost under running averages, in watched trainings",
        "Read a point as how much worse a validation is under running averages than under exact statistics of the "
        f"latest training images, of the same weights, in {unit}. Below 0 running averages do better. A line is one "
        f"training.{_say_left_out(left_out)}",
        lambda tables: means,
        Curves("update", "line", axis, across=_UPDATES),
    )


def _say_left_out(count: int) -> str:
    """Say how many validations cannot be drawn; empty for none."""
    if not count:
        return ""
    noun = "validation" if count == 1 else "validations"
    return f" {count} {noun} under running averages gave no finite number: not drawn."
