"""An overview of any sweep, without a question: figures and a table of means, by what was varied.

In a figure the momentum is across where an estimator has several, else the first setting with numbers; words stand one
below the other. Colours tell estimators apart or, where there is one, the next setting. All other settings make panels.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.experiment import Figure
from bnlab.harness.reporting.frames import OVERVIEWED, OtherThan, Tables, interval, paired, select
from bnlab.harness.reporting.means import average_gap
from bnlab.harness.reporting.plots import GAP, LOST_OF_ANY_SIZE, Axis, Curves, Forest, Plot
from bnlab.harness.reporting.style import axis_of
from bnlab.harness.reporting.tables import OwnTable
from bnlab.harness.reporting.wording import (
    describe_networks,
    estimator_label,
    find_length,
    format_number,
    list_values,
    list_varied,
    name_setting,
    name_value,
    write_value,
)
from bnlab.harness.trained_with import LARGER_IS_BETTER, METRIC_NAME, METRIC_UNIT
from bnlab.harness.user_code import SOURCE, digest_code, read_code

_PANELS = 12  # the most that are drawn
_LOST = replace(LOST_OF_ANY_SIZE, label="accuracy lost (points)")  # a heading of the table, too
_POPULATIONS = ("train", "train_augmented", "val")  # exact statistics of the first that was measured are the reference


@dataclass(frozen=True)
class Overview:
    """What is shown of a sweep.

    Attributes:
        networks: sentences on its networks: how many, what was varied, what they share.
        figures: by the names of their files.
        table: a row for each condition at the last step, in words.
        own: the same of each table that a measurement of the user's own has measured, by its name.
        notes: what is to be said of rows by other code of the user's than there is now.
    """

    networks: str
    figures: dict[str, Figure]
    table: pd.DataFrame
    own: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Measure:
    """Measured values that are drawn.

    Attributes:
        name: of the figures' files.
        title: of the figures; empty: the name of the file.
        axis: of the means, which are geometric on a logarithmic axis.
        frame: the rows of all networks and steps, with the columns `value`, `status` and `settings`, and `estimator`,
            empty where there is none.
        settings: what was varied beside seeds, momenta and estimators.
        value: the column of `frame` that is drawn.
        scale: a factor of its values.
        caption: a sentence for its figures.
        decimals: how many a mean without an interval has in the table; None: as many as `format_number` gives it.
        together: of a setting, others that have one value for each of its own, so that their effects cannot be told
            apart.
    """

    name: str
    axis: Axis
    frame: pd.DataFrame
    settings: list[str]
    value: str
    scale: float = 1
    caption: str = ""
    decimals: int | None = None
    together: Mapping[str, list[str]] = field(default_factory=dict)
    title: str = ""

    def average(self, frame: pd.DataFrame, *by: str) -> pd.DataFrame:
        """Average rows over seeds, see `frames.interval`, for each setting, estimator and momentum."""
        keys = [*self.settings, "estimator", "momentum", *by]
        means = interval(frame, self.value, keys, scale=self.scale, geometric=self.axis.log)
        return means.sort_values(keys, ignore_index=True)

    def average_last(self) -> pd.DataFrame:
        """Average over seeds at the last step of each condition; networks that have diverged are left out.

        One that was measured only before that is none of the n seeds.
        """
        trained = self.frame[self.frame["status"] != "diverged"]
        # A share of the training, because conditions may differ in their number of steps.
        share = trained["step"] / trained["steps"]
        # The constant makes one group of all rows where nothing was varied.
        in_one_condition = [pd.Series(0, trained.index), *(trained[key] for key in self.settings)]
        last = share.groupby(in_one_condition, dropna=False).transform("max")
        return self.average(trained[share == last])


def make_overview(tables: Tables, own: Mapping[str, OwnTable] | None = None) -> Overview:
    """Make the overview of a sweep from its tables, see `tables.load`, some of which are the user's own.

    Raises:
        NoRows: nothing has been measured that is drawn, and no network diverged or failed, as the table would say.
    """
    runs = tables["runs"]
    settings, together = _find_varied(runs)
    networks = runs[[*dict.fromkeys(["run", "seed", "status", "steps", *settings])]]
    measures = []
    if len(tables.get("gaps", ())):
        measures += _measure_gaps(tables["gaps"], networks, settings)
    if len(tables.get("evaluations", ())):
        for metric, names in _list_metrics(runs):
            rows = select(tables["evaluations"], run=names)
            measures += _measure_predictions(rows, networks, settings, metric) if len(rows) else []
    epochs = runs.set_index("run")["epochs"] / runs.set_index("run")["steps"]  # of an update
    own_measures = {}
    for name, described in (own or {}).items():
        rows = tables[name]
        # A user's table need not have epochs, which figures over the training have across.
        rows = rows.assign(epoch=rows["step"] * rows["run"].map(epochs))
        own_measures[name] = _measure_own(name, rows, described, networks, settings)
    if not measures and not any(own_measures.values()) and not runs["status"].isin(["diverged", "failed"]).any():
        raise NoRows(f"no network has a gap or an accuracy; sweep with measurements=[{','.join(OVERVIEWED)}]")

    figures: dict[str, Figure] = {}
    for measure in itertools.chain(measures, *own_measures.values()):
        figures |= _declare_figures(replace(measure, together=together))
    sentences = [describe_networks(runs), *_describe_together(together), *_name_current_code(runs)]
    own_tables = {name: _write_table(each, networks, settings) for name, each in own_measures.items() if each}
    return Overview(" ".join(sentences), figures, _write_table(measures, networks, settings), own_tables)


def _name_current_code(runs: pd.DataFrame) -> Iterator[str]:
    """Name the digest of the user's code as it is now, where networks of several versions of it were trained.

    Nothing is said where none of the digests is that of the file, as in another folder than the sweep's.
    """
    for column in runs.columns:
        setting, _, name = str(column).rpartition(".")
        if name != SOURCE or runs[column].nunique() < 2:
            continue
        for path in runs[setting].dropna().unique():
            module, _, _ = path.rpartition(".")
            current = digest_code(module) if read_code(module) else ""
            if current in set(runs[column]):
                yield f"{column} {current} is {path} as it is now."


def _find_varied(runs: pd.DataFrame) -> tuple[list[str], dict[str, list[str]]]:
    """Find the settings that were varied, seed apart, and by setting those that differ together with it.

    A setting of a component, as the width of a model, is part of what was chosen, and is left out where it follows from
    the choice.
    """
    length = find_length(runs)
    varied = [length if column == "epochs" else column for column in list_varied(runs)]

    together: dict[str, list[str]] = {}
    for column in varied:
        choice, dot, _ = column.partition(".")
        is_part = bool(dot) and choice in varied and _follows(runs, column, choice)
        if is_part or runs[column].nunique(dropna=False) < 2:
            continue
        leading = [setting for setting in together if _follows(runs, column, setting)]
        if leading:
            together[leading[0]].append(column)
        else:
            together[column] = []

    settings = [column for setting, others in together.items() for column in (setting, *others)]
    return settings, {setting: others for setting, others in together.items() if others}


def _follows(runs: pd.DataFrame, column: str, setting: str) -> bool:
    """Find out whether a column has a single value wherever a setting is the same."""
    counts = runs.groupby(setting, dropna=False)[column].nunique(dropna=False)
    return bool(counts.max() == 1)


def _describe_together(together: Mapping[str, list[str]]) -> Iterator[str]:
    """Say which settings differ together, so that what one of them does cannot be told from what the others do."""
    for setting, others in together.items():
        names = " and ".join(map(name_setting, others))
        yield f"Not told apart: {name_setting(setting)} differs together with {names}."


def _measure_gaps(rows: pd.DataFrame, networks: pd.DataFrame, settings: list[str]) -> list[_Measure]:
    """Average gaps over layers, see `average_gap`; the images of statistics are a setting where there are several."""
    frame = average_gap(select(rows, estimator=OtherThan("exact"))).merge(networks, on="run")
    keys = [*settings]
    if frame["statistics_split"].nunique() > 1:
        keys.append("statistics_split")
    return [_Measure("gap", GAP, frame, keys, "mean_gap")]


@dataclass(frozen=True)
class _Metric:
    """The metric of a task: its column in `evaluations`, its name, unit, scale in figures, and direction."""

    column: str = "accuracy"
    name: str = "accuracy"
    unit: str = "%"
    scale: float = 100
    larger_is_better: bool = True

    @property
    def in_unit(self) -> str:
        """The unit, as an ending of labels."""
        return f" ({self.unit})" if self.unit else ""


def _list_metrics(runs: pd.DataFrame) -> list[tuple[_Metric, list[str]]]:
    """List the metrics of the networks' tasks, each with the names of its networks."""
    if METRIC_NAME not in runs:
        return [(_Metric(), list(runs["run"]))]
    metrics = []
    described = runs.groupby([METRIC_NAME, METRIC_UNIT, LARGER_IS_BETTER], dropna=False)
    for _, networks in described:
        name, unit, larger_is_better = networks[[METRIC_NAME, METRIC_UNIT, LARGER_IS_BETTER]].iloc[0]
        metric = _Metric() if pd.isna(name) else _Metric("metric", str(name), str(unit), 1, bool(larger_is_better))
        metrics.append((metric, list(networks["run"])))
    return metrics


def _measure_predictions(
    rows: pd.DataFrame, networks: pd.DataFrame, settings: list[str], metric: _Metric
) -> list[_Measure]:
    """Take accuracies in percent, or the task's metric, and what of it is lost; images are a setting if they vary."""
    # Statistics of the test batch, or none at all, are told apart by the names of estimators already.
    splits = rows["statistics_split"].replace(["test", "none"], "train")
    frame = rows.assign(statistics_split=splits).merge(networks, on="run")

    keys = [*settings]
    for column in ("statistics_split", "split", "shift"):
        if frame[column].nunique() > 1:
            keys.append(column)
    images = list_values(frame["split"])
    decimals = None
    if metric.column == "accuracy":
        # One image more or less is the least by which an accuracy in percent can change.
        least = 100 / frame["images"].max()
        decimals = max(0, -math.floor(math.log10(least)))
    axis = Axis(f"{images} {metric.name}{metric.in_unit}")
    file = re.sub(r"\W+", "_", metric.name)
    measure = _Measure(file, axis, frame, keys, metric.column, scale=metric.scale, decimals=decimals, title=metric.name)
    return [measure, *_measure_losses(measure, metric)]


def _escape(text: str) -> str:
    """Write a text of the user's so that captions, which have fields in braces, leave it as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def _measure_own(
    name: str, rows: pd.DataFrame, described: OwnTable, networks: pd.DataFrame, settings: list[str]
) -> list[_Measure]:
    """Take the numbers of a table of the user's own; what else its key tells apart is a setting, as layers may be."""
    without: dict[str, Any] = {"estimator": "", "momentum": math.nan}
    filled = rows.assign(**{column: value for column, value in without.items() if column not in rows})
    # A user's column may have the name of a setting, and keeps it.
    frame = filled.merge(networks, on="run", suffixes=("", " of the network"))

    keys = [*settings]
    for column in described.key:
        if column not in ("run", "step", "estimator", "momentum") and frame[column].nunique() > 1:
            keys.append(column)
    measures = []
    for column, meaning in described.numbers.items():
        label = f"{name}: {column}"
        measures.append(
            _Measure(f"{name}_{column}", Axis(label), frame, keys, column, caption=f"`{column}`: {_escape(meaning)}.")
        )
    return measures


def _measure_losses(measure: _Measure, metric: _Metric) -> list[_Measure]:
    """Compute how much better the metric is under exact statistics of the same weights; nothing if not measured.

    What networks differ in under both is no part of the difference, nor of its interval over seeds.
    """
    frame = measure.frame
    is_exact = frame["estimator"] == "exact"
    populations = frame.loc[is_exact, "statistics_split"].unique()
    if not len(populations):
        return []

    population = min(populations, key=_POPULATIONS.index)
    is_reference = is_exact & (frame["statistics_split"] == population)
    # `paired` refuses seeds that only one side has, as of networks without batch norm.
    has_reference = frame["run"].isin(frame.loc[is_reference, "run"])
    has_others = frame["run"].isin(frame.loc[~is_reference, "run"])
    is_compared = has_reference & has_others
    if population != "train":  # among several others `paired` does not choose
        is_compared &= is_reference | ~is_exact
    if not is_compared.any():
        return []

    measured_on = "" if population == "train" else f", measured on {population}"
    change = "lost" if metric.larger_is_better else "added"
    in_unit = " (points)" if metric.unit == "%" else metric.in_unit
    axis = _LOST if metric.column == "accuracy" else Axis(f"{metric.name} {change}{in_unit}")
    losses = replace(
        measure,
        name=f"{measure.name}_{change}",
        title=f"{metric.name} {change}",
        axis=axis,
        frame=paired(frame[is_compared], metric.column),
        scale=-metric.scale if metric.larger_is_better else metric.scale,
        caption=f"Against exact statistics of the same weights{measured_on}.",
    )
    return [losses]


def _declare_figures(measure: _Measure) -> dict[str, Figure]:
    """Declare the figure of the last step and, where several steps were measured, the one over the training."""
    figures = {}
    last = measure.average_last()
    steps = measure.average(measure.frame, "epoch")
    has_steps = measure.frame.groupby("run")["step"].nunique().max() > 1
    # A single mean is no figure, unless there is nothing else to draw.
    if len(last) > 1 or not has_steps:
        figures[measure.name] = _declare("at the last step", measure, last)
    if has_steps:
        figures[f"{measure.name}_training"] = _declare("over the training", measure, steps, "epoch")
    return figures


@dataclass(frozen=True)
class _Layout:
    """Where a figure shows what was varied.

    Attributes:
        across: the column across; empty: means stand one below the other.
        lines: the settings that tell its lines apart, one at most; without any, estimators do.
        panels: the settings that tell its panels apart.
    """

    across: str
    lines: list[str]
    panels: list[str]


def _declare(when: str, measure: _Measure, means: pd.DataFrame, across: str = "") -> Figure:
    """Declare a figure of means; what is across may be given."""
    layout = _choose_layout(measure, means, across)
    # Both are named from the means as they are: a user's table may have a column `line` itself.
    panel = _name_rows(means, _list_together(measure, layout.panels))
    named = means.assign(line=_name_lines(measure, means, layout), panel=panel)

    has_estimators = bool(means["estimator"].any())
    caption = measure.caption
    # Where the legend names settings alone, the caption names the statistics.
    if layout.across and layout.lines and has_estimators:
        caption += f" Statistics: {_name_statistics(means, layout)}."
    panels = named["panel"].unique()
    if len(panels) > _PANELS:
        caption += f" The first {_PANELS} of {len(panels)} panels are drawn; sweep fewer values to see others."
        named = select(named, panel=panels[:_PANELS])

    axis = measure.axis
    if axis.linear:
        axis = _reach_zero(axis, named)
    plot: Plot = Forest("line", axis)
    if layout.across:
        by = "line" if layout.lines or not has_estimators else "estimator"
        across_axis = _choose_axis(layout.across, named[layout.across])
        others = [name_setting(column) for column in measure.together.get(layout.across, ())]
        if others:
            across_axis = replace(across_axis, label=f"{across_axis.label}, with {' and '.join(others)}")
        plot = Curves(layout.across, by, axis, across=across_axis)
    title = measure.title or measure.name.replace("_", " ")
    return Figure(f"{title[0].upper()}{title[1:]} {when}", caption.strip(), lambda tables: named, plot)


def _choose_layout(measure: _Measure, means: pd.DataFrame, given: str) -> _Layout:
    """Choose what is across, unless that is given, and which settings make lines and panels."""
    following = {*itertools.chain(*measure.together.values())}
    settings = [column for column in measure.settings if column not in following]
    varied = [column for column in settings if means[column].nunique(dropna=False) > 1]
    across = given or _choose_across(means, varied)
    others = [column for column in varied if column != across]

    statistics = means[["estimator", "momentum"]].drop_duplicates()
    if across == "momentum":
        # Momenta that stand across are no lines of their own.
        statistics = statistics.drop_duplicates("estimator")
    # Colours tell one thing apart: estimators or, where there is a single one, the first other setting. Where
    # nothing is across, the setting is listed with the estimators. What is left makes panels.
    lines = others[:1]
    if across and len(statistics) > 1:
        lines = []
    return _Layout(across, lines, panels=others[len(lines) :])


def _list_together(measure: _Measure, settings: Sequence[str]) -> list[str]:
    """List settings, each with those that differ together with it."""
    return [column for setting in settings for column in (setting, *measure.together.get(setting, ()))]


def _name_lines(measure: _Measure, means: pd.DataFrame, layout: _Layout) -> str | list[str]:
    """Name the line of each row, by settings, estimators or both; the measured column where nothing tells lines apart.

    Lines across a setting have one statistic, which the caption names.
    """
    columns = _list_together(measure, layout.lines)
    if means["estimator"].any() and not (layout.across and layout.lines):
        columns.append("estimator")
    if not columns:
        return measure.value
    return _name_rows(means, columns)


def _name_statistics(means: pd.DataFrame, layout: _Layout) -> str:
    """Name the statistics that all lines have, without a momentum where momenta are across."""
    first = means.iloc[0]
    momentum = math.nan if layout.across == "momentum" else first["momentum"]
    return estimator_label(first["estimator"], momentum)


def _choose_across(means: pd.DataFrame, varied: list[str]) -> str:
    """Choose the column across; empty where only words were varied."""
    momenta = means.groupby("estimator")["momentum"].nunique()
    if momenta.max() > 1:
        return "momentum"
    numbers = means[varied].select_dtypes("number")
    return str(next(iter(numbers), ""))


def _choose_axis(column: str, values: pd.Series) -> Axis:
    """Choose the axis across; on a logarithmic one limits hold in panels without numbers, too."""
    axis = axis_of(column, values)
    if axis.log:
        return replace(axis, limits=(0.9 * values.min(), 1.1 * values.max()))
    return axis


def _reach_zero(axis: Axis, means: pd.DataFrame) -> Axis:
    """Let an axis of differences reach from 0, with which they are compared, to the first tick beside it at least."""
    shown = means[["mean", "low", "high"]]
    low = min(shown.min().min(), -0.1 * axis.linear)
    high = max(shown.max().max(), axis.linear)
    return replace(axis, limits=(1.2 * low, 1.2 * high))


def _name_rows(frame: pd.DataFrame, columns: list[str]) -> list[str]:
    """Name each row by its values, as `batch size 32, norm group`."""
    names = []
    for row in frame.to_dict("records"):
        words = [_name_cell(row, column) for column in columns]
        names.append(", ".join(words))
    return names


def _name_cell(row: Mapping[Any, Any], column: str) -> str:
    """Name the value that a row has in a column; an estimator by itself and by the row's momentum."""
    if column == "estimator":
        return estimator_label(row["estimator"], row["momentum"])
    if pd.isna(row[column]):
        return f"no {name_setting(column)}"
    return name_value(column, write_value(row[column]))


def _write_table(measures: list[_Measure], networks: pd.DataFrame, varied: list[str]) -> pd.DataFrame:
    """Write means with their intervals at the last step: a row for each condition, with settings and statistics.

    Beside n it says how many networks diverged or failed. A condition without any other network has a row that says so.
    """
    table = _write_means(measures, varied)
    # A measure has settings of its own, as the split on which its statistics were measured.
    settings = [*dict.fromkeys(column for measure in measures for column in measure.settings)] or varied
    results = [measure.axis.label for measure in measures] or ["result"]

    left_out = _count_left_out(networks, measures, varied)
    # An outer join keeps conditions of which no network was measured.
    table = table.assign(sweep=0).merge(left_out, on=["sweep", *varied], how="outer")
    table = table.sort_values([*settings, "estimator", "momentum"], ignore_index=True)
    is_measured = table["n"].notna()

    written = table[settings].map(write_value, na_action="ignore").rename(columns=name_setting)
    has_statistics = is_measured & (table["estimator"] != "")
    measured = table[has_statistics]
    written["statistics"] = pd.Series(_name_rows(measured, ["estimator"]), measured.index, dtype=object)
    for column in results:
        written[column] = table["ends"]
        if column in table:
            written[column] = table[column].where(is_measured, table["ends"])
    written["n"] = [_write_count(*row) for row in table[["n", "left_out", "ends"]].itertuples(index=False)]
    if not has_statistics.any() and is_measured.any():
        written = written.drop(columns="statistics")
    cells = written.astype(object)
    return cells.where(cells.notna(), "")


def _write_means(measures: list[_Measure], varied: list[str]) -> pd.DataFrame:
    """Write the means of each condition in one row; `n` is the largest of theirs, a mean over fewer has its own."""
    table = pd.DataFrame(columns=[*varied, "estimator", "momentum", "n"])
    counts = {}
    for measure in measures:
        label = measure.axis.label
        counts[label] = f"n of {label}"
        means = measure.average_last()
        rows = means[["mean", "low", "high", "n"]].to_numpy(float)
        means[label] = [_write_mean(mean, low, high, n, measure.decimals) for mean, low, high, n in rows]
        means[counts[label]] = means["n"]
        part = means[[*measure.settings, "estimator", "momentum", label, counts[label]]]
        # Means are joined by the settings and statistics that their measures share.
        table = part if measure is measures[0] else table.merge(part, how="outer")

    if measures:
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


def _count_left_out(networks: pd.DataFrame, measures: list[_Measure], varied: list[str]) -> pd.DataFrame:
    """Count the networks that no mean has, as they diverged or failed, by what was varied; `ends` says which of both.

    The column `sweep` is 0: something to group by also where nothing was varied.
    """
    measured = [run for measure in measures for run in measure.frame["run"]]
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
