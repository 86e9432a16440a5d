"""The table of a sweep's report: means with their intervals at the last step, in words, by what was varied."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bnlab.harness.reporting.measured import STATISTICS, MeasuredValue, find_varied
from bnlab.harness.reporting.plots import Curves, Forest, Plot
from bnlab.harness.reporting.tables import LoadedTables
from bnlab.harness.reporting.wording import format_number, name_rows, name_setting, write_value


def write_points(plot: Plot, points: pd.DataFrame) -> pd.DataFrame:
    """Write the points of a figure of any sweep in words: panel, line, what is across, mean with interval, n."""
    columns = [column for column in ("panel", "line") if points[column].nunique() > 1]
    written = points[columns].copy()
    label = "mean"
    if isinstance(plot, Curves):
        written[plot.x] = points[plot.x].map(write_value, na_action="ignore")
        label = plot.y.label
    elif isinstance(plot, Forest):
        label = plot.x.label
    written[label] = [format_number(*number) for number in points[["mean", "low", "high"]].to_numpy()]
    written["n"] = points["n"]
    return written.astype(object).fillna("")


def write_means(tables: LoadedTables, values: Sequence[MeasuredValue]) -> dict[str, pd.DataFrame]:
    """Write means with their intervals at the last step as tables in words, a row for each condition.

    Returns:
        Under the empty name the table of gaps and predictions, and those of the user's own by their names; a table
        without rows is left out. Beside n they say how many networks diverged or failed. A condition without any other
        network has a row that says so.
    """
    runs = tables["runs"]
    settings, _ = find_varied(runs)
    networks = runs[[*dict.fromkeys(["run", "seed", "status", "steps", *settings])]]
    parts: dict[str, list[MeasuredValue]] = {"": []}
    for value in values:
        parts.setdefault(value.own_table, []).append(value)
    written = {name: _write_table(part, networks, settings) for name, part in parts.items()}
    return {name: table for name, table in written.items() if len(table)}


def _write_table(values: Sequence[MeasuredValue], networks: pd.DataFrame, varied: Sequence[str]) -> pd.DataFrame:
    """Write the means of some measured values in one table, see `write_means`."""
    table = _join_means(values, varied)
    # A value has settings of its own, as the split on which its statistics were measured.
    settings = [*dict.fromkeys(column for value in values for column in value.keys)] or [*varied]
    results = [value.axis.label for value in values] or ["result"]

    left_out = _count_left_out(networks, values, varied)
    # An outer join keeps conditions of which no network was measured.
    table = table.assign(sweep=0).merge(left_out, on=["sweep", *varied], how="outer")
    table = table.sort_values([*settings, *STATISTICS], ignore_index=True)
    is_measured = table["n"].notna()

    written = table[settings].map(write_value, na_action="ignore").rename(columns=name_setting)
    has_statistics = is_measured & (table["estimator"] != "")
    measured = table[has_statistics]
    written["statistics"] = pd.Series(name_rows(measured, ["estimator"]), measured.index, dtype=object)
    for column in results:
        written[column] = table["ends"]
        if column in table:
            written[column] = table[column].where(is_measured, table["ends"])
    written["n"] = [_write_count(*row) for row in table[["n", "left_out", "ends"]].itertuples(index=False)]
    if not has_statistics.any() and is_measured.any():
        written = written.drop(columns="statistics")
    cells = written.astype(object)
    return cells.where(cells.notna(), "")


def _join_means(values: Sequence[MeasuredValue], varied: Sequence[str]) -> pd.DataFrame:
    """Write the means of each condition in one row; `n` is the largest of theirs, a mean over fewer has its own."""
    table = pd.DataFrame(columns=[*varied, *STATISTICS, "n"])
    counts = {}
    for value in values:
        label = value.axis.label
        counts[label] = f"n of {label}"
        means = value.average(value.select_last())
        rows = means[["mean", "low", "high", "n"]].to_numpy(float)
        means[label] = [_write_mean(mean, low, high, n, value.decimals) for mean, low, high, n in rows]
        means[counts[label]] = means["n"]
        part = means[[*value.keys, *STATISTICS, label, counts[label]]]
        # Means are joined by the settings and statistics that their values share.
        table = part if value is values[0] else table.merge(part, how="outer")

    if values:
        table = table.assign(n=table[[*counts.values()]].max(axis=1))
    for label, count in counts.items():
        cells = []
        for mean, n, largest_n in table[[label, count, "n"]].itertuples(index=False):
            has_fewer = n < largest_n
            cells.append(f"{mean} (n = {n:.0f})" if has_fewer else mean)
        table = table.assign(**{label: cells})
    return table


def _write_mean(mean: float, low: float, high: float, n: float, decimals: int | None) -> str:
    """Write a mean with its interval; without one the number of decimals may be given."""
    if not math.isnan(low):
        return format_number(mean, low, high)
    written = format_number(mean, low, high) if decimals is None else f"{mean:.{decimals}f}"
    return f"{written} (the same for all seeds)" if n > 1 else written


def _count_left_out(networks: pd.DataFrame, values: Sequence[MeasuredValue], varied: Sequence[str]) -> pd.DataFrame:
    """Count the networks that diverged or failed and are in no mean, by what was varied; `ends` says which of the two.

    The column `sweep` is 0: something to group by also where nothing was varied.
    """
    measured = [run for value in values for run in value.rows["run"]]
    has_rows = networks["run"].isin(measured)
    has_diverged = networks["status"] == "diverged"
    has_failed = networks["status"] == "failed"

    # A failed network may have been measured before, and is in the means then. A diverged one never is.
    left_out = networks[has_diverged | (has_failed & ~has_rows)].assign(sweep=0)
    groups = left_out.groupby(["sweep", *varied], dropna=False)["status"]
    ends = groups.agg(lambda statuses: " or ".join(sorted({*statuses})))
    return pd.DataFrame({"left_out": groups.size(), "ends": ends}).reset_index()


def _write_count(n: float, left_out: float, ends: str) -> int | str:
    """Write of how many networks a mean is, with those that it does not have."""
    if pd.isna(n):
        return int(left_out)
    if pd.isna(left_out):
        return int(n)
    return f"{n:.0f} ({left_out:.0f} {ends})"
