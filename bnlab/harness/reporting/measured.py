"""What a sweep has measured, by what was varied: the values that the report of any sweep draws and tabulates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from bnlab.harness.artifacts.job_settings import USUAL_TABLES
from bnlab.harness.errors import NoRows, UserError, suggest
from bnlab.harness.reporting.frames import OtherThan, Tables, interval, paired, select
from bnlab.harness.reporting.means import average_gap, select_largest_gap
from bnlab.harness.reporting.plots import GAP, LOST_OF_ANY_SIZE, Axis
from bnlab.harness.reporting.tables import LoadedTables, OwnTable
from bnlab.harness.reporting.wording import (
    describe_networks,
    find_length,
    list_values,
    list_varied,
    name_setting,
)
from bnlab.harness.run_table import LARGER_IS_BETTER, METRIC_NAME, METRIC_UNIT
from bnlab.harness.user_code import SOURCE, digest_code, read_code

STATISTICS = ("estimator", "momentum")
"""The columns that name statistics."""
LOST = replace(LOST_OF_ANY_SIZE, label="accuracy lost (points)")
"""The axis of what is lost against exact statistics, and a heading of the table of means."""
LEARNT = 0.5
"""The share of the test images that exact statistics have to predict right, so that there is something to lose."""
_POPULATIONS = ("train", "train_augmented", "val")  # exact statistics of the first that was measured are the reference
_OF_LAYERS = ("layer", "depth", "channel")


@dataclass(frozen=True)
class MeasuredValue:
    """A measured value of the networks of a sweep.

    Attributes:
        name: of the figures' files.
        title: of the figures.
        axis: of the means, which are geometric on a logarithmic axis.
        rows: of all networks and steps, with the settings and `status` of networks, `estimator` (empty where there is
            none) and `momentum`.
        keys: the columns that tell rows apart, beside seeds, steps, estimators and momenta: settings that were varied,
            images.
        column: of `rows`, the value.
        scale: a factor of it.
        caption: a sentence for its figures.
        decimals: how many a mean without an interval has in the table; None: as many as `format_number` gives it.
        own_table: the table of the user's own that has it; empty: it is one of bnlab's.
        confounded: by setting, others whose values it decides, so that their effects cannot be told apart.
    """

    name: str
    title: str
    axis: Axis
    rows: pd.DataFrame
    keys: Sequence[str]
    column: str
    scale: float = 1
    caption: str = ""
    decimals: int | None = None
    own_table: str = ""
    confounded: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def average(self, rows: pd.DataFrame, *by: str) -> pd.DataFrame:
        """Average rows over seeds, see `frames.interval`, for each setting, estimator and momentum."""
        keys = list(dict.fromkeys([*self.keys, *STATISTICS, *by]))
        means = interval(rows, self.column, keys, scale=self.scale, geometric=self.axis.log)
        return means.sort_values(keys, ignore_index=True)

    def select_last(self) -> pd.DataFrame:
        """Select the last step of each condition; networks that have diverged are left out.

        One that was measured only before that is none of the n seeds.
        """
        trained = self.rows[self.rows["status"] != "diverged"]
        # A share of the training, because conditions may differ in their number of steps.
        share = trained["step"] / trained["steps"]
        # The constant makes one group of all rows where nothing was varied.
        in_one_condition = [pd.Series(0, trained.index), *(trained[key] for key in self.keys)]
        last = share.groupby(in_one_condition, dropna=False).transform("max")
        return trained[share == last]


def list_measured(tables: LoadedTables, wanted: str = "", columns: Sequence[str] = ()) -> list[MeasuredValue]:
    """List the measured values of a sweep that are drawn.

    Args:
        tables: of the sweep.
        wanted: a column, or the name of a value: it alone is listed, even if no figure shows it unless it is asked for.
        columns: settings of the networks that its rows are to have, beside those that were varied, or a layer's: gaps
            are averaged over layers without.

    Raises:
        NoRows: there are none, and no network diverged or failed.
        UserError: none is called so.
    """
    runs = tables["runs"]
    settings, confounded = find_varied(runs)
    networks = runs[
        [
            *dict.fromkeys(
                [
                    "run",
                    "seed",
                    "status",
                    "steps",
                    *settings,
                    *(column for column in columns if column in runs and column not in STATISTICS),
                ]
            )
        ]
    ]

    values = []
    if len(tables.get("gaps", ())):
        values.append(_measure_gaps(tables["gaps"], networks, settings, wanted, columns))
    if len(tables.get("evaluations", ())):
        for metric, names in _list_metrics(runs):
            rows = select(tables["evaluations"], run=names)
            if len(rows):
                values += _measure_predictions(rows, networks, settings, metric, wanted)
    epochs = runs.set_index("run")["epochs"] / runs.set_index("run")["steps"]  # of an update
    for name, described in tables.own.items():
        rows = tables[name]
        # A user's table need not have epochs, which figures over the training have across.
        rows = rows.assign(epoch=rows["step"] * rows["run"].map(epochs))
        values += _measure_own(name, rows, described, networks, settings)
    if not values and not runs["status"].isin(["diverged", "failed"]).any():
        raise NoRows(f"no network has a gap or an accuracy; sweep with measurements=[{','.join(USUAL_TABLES)}]")

    if wanted:
        called = {name: value for value in reversed(values) for name in (value.column, value.name)}
        if wanted not in called:
            raise UserError(f"value={wanted}: {suggest(wanted, called)}")
        values = [called[wanted]]
    return [replace(value, confounded=confounded) for value in values]


def pair_gaps_with_losses(tables: Tables, gap: str = "mean_gap") -> pd.DataFrame:
    """Find the largest gap of each network's running averages over its layers, and what they cost there.

    Args:
        tables: of a sweep, with `gaps` and `evaluations`.
        gap: the column of `gaps`.

    Returns:
        A row for each network, step and momentum where exact statistics classify more than `LEARNT` of the test images:
        the columns of `runs`, `step`, `momentum`, `gap`, in the layer `largest`, and `lost`, a share of the images.
    """
    keys = ["run", "step", "momentum"]
    accuracies = select(tables["evaluations"], split="test", shift="none", estimator=("ema", "exact"))
    exact = select(accuracies, estimator="exact", statistics_split="train")
    learnt = exact.loc[exact["accuracy"] > LEARNT, ["run", "step", "accuracy"]].rename(columns={"accuracy": "exact"})
    running = select(accuracies, estimator="ema", statistics_split="train")[[*keys, "accuracy"]]
    losses = running.merge(learnt, on=["run", "step"])
    losses["lost"] = losses["exact"] - losses["accuracy"]

    layers = select(tables["gaps"], estimator="ema", statistics_split="train").assign(panel="")
    layers = layers.assign(gap=layers[gap]).merge(losses[[*keys, "lost"]], on=keys)
    if layers.empty:
        return layers.assign(largest="")
    largest = select_largest_gap(layers, "gap", ["panel"])
    settings = [column for column in tables["runs"] if column == "run" or column not in largest]
    return largest.merge(tables["runs"][settings], on="run")


def describe_runs(runs: pd.DataFrame) -> str:
    """Say what was swept: the networks, which settings differ together, and which code is the current one."""
    _, confounded = find_varied(runs)
    return " ".join([describe_networks(runs), *_describe_confounded(confounded), *_name_current_code(runs)])


def find_varied(runs: pd.DataFrame) -> tuple[list[str], dict[str, list[str]]]:
    """Find the settings that were varied, seed apart, and by setting those whose values it decides.

    A setting of a component is left out where the choice of the component decides it: `model.width`, if each model was
    trained in one width.
    """
    length = find_length(runs)
    varied = [length if column == "epochs" else column for column in list_varied(runs)]

    confounded: dict[str, list[str]] = {}
    for column in varied:
        choice, dot, _ = column.partition(".")
        is_part = bool(dot) and choice in varied and _follows(runs, column, choice)
        if is_part or runs[column].nunique(dropna=False) < 2:
            continue
        leading = [setting for setting in confounded if _follows(runs, column, setting)]
        if leading:
            confounded[leading[0]].append(column)
        else:
            confounded[column] = []

    settings = [column for setting, others in confounded.items() for column in (setting, *others)]
    return settings, {setting: others for setting, others in confounded.items() if others}


def _follows(runs: pd.DataFrame, column: str, setting: str) -> bool:
    """Find out whether a column has a single value wherever a setting is the same."""
    counts = runs.groupby(setting, dropna=False)[column].nunique(dropna=False)
    return bool(counts.max() == 1)


def _describe_confounded(confounded: Mapping[str, list[str]]) -> Iterator[str]:
    """Say which settings differ together, so that what one of them does cannot be told from what the others do."""
    for setting, others in confounded.items():
        names = " and ".join(map(name_setting, others))
        yield f"Not told apart: {name_setting(setting)} differs together with {names}."


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


def _measure_gaps(
    rows: pd.DataFrame, networks: pd.DataFrame, settings: Sequence[str], wanted: str, columns: Sequence[str]
) -> MeasuredValue:
    """Average gaps over layers, see `average_gap`, unless these are told apart."""
    column = wanted if wanted in rows else "mean_gap"
    axis = GAP if column == "mean_gap" else Axis(name_setting(column), log=bool((rows[column] > 0).all()))
    of_layers = [key for key in _OF_LAYERS if key in columns and key in rows]
    estimated = select(rows, estimator=OtherThan("exact"))
    frame = estimated if of_layers else average_gap(estimated, column)
    frame = frame.merge(networks, on="run")
    keys = [*settings, *of_layers]
    # The images of statistics are a setting where there are several.
    if frame["statistics_split"].nunique() > 1:
        keys.append("statistics_split")
    return MeasuredValue("gap" if column == "mean_gap" else column, "gap", axis, frame, keys, column)


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
    rows: pd.DataFrame, networks: pd.DataFrame, settings: Sequence[str], metric: _Metric, wanted: str
) -> list[MeasuredValue]:
    """Take accuracies in percent, or the task's metric, and what of it is lost; images are a setting if they vary."""
    if wanted in rows and wanted != metric.column:
        metric = _Metric(wanted, name_setting(wanted), "", 1)
    # Statistics of the test batch, or none at all, are told apart by the names of estimators already.
    splits = rows["statistics_split"].replace(["test", "none"], "train")
    frame = rows.assign(statistics_split=splits).merge(networks, on="run")

    keys = [*settings]
    for column in ("statistics_split", "split", "shift"):
        if frame[column].nunique() > 1:
            keys.append(column)
    decimals = None
    if metric.column == "accuracy":
        # One image more or less is the least by which an accuracy in percent can change.
        least = 100 / frame["images"].max()
        decimals = max(0, -math.floor(math.log10(least)))
    axis = Axis(f"{list_values(frame['split'])} {metric.name}{metric.in_unit}")
    file = re.sub(r"\W+", "_", metric.name)
    value = MeasuredValue(file, metric.name, axis, frame, keys, metric.column, scale=metric.scale, decimals=decimals)
    return [value, *_compute_losses(value, metric)]


def _compute_losses(value: MeasuredValue, metric: _Metric) -> list[MeasuredValue]:
    """Compute how much better the metric is under exact statistics of the same weights; nothing if not measured.

    What networks differ in under both is no part of the difference, nor of its interval over seeds.
    """
    frame = value.rows
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
    axis = LOST if metric.column == "accuracy" else Axis(f"{metric.name} {change}{in_unit}")
    losses = replace(
        value,
        name=f"{value.name}_{change}",
        title=f"{metric.name} {change}",
        axis=axis,
        rows=paired(frame[is_compared], metric.column),
        scale=-metric.scale if metric.larger_is_better else metric.scale,
        caption=f"Against exact statistics of the same weights{measured_on}.",
    )
    return [losses]


def _measure_own(
    name: str, rows: pd.DataFrame, described: OwnTable, networks: pd.DataFrame, settings: Sequence[str]
) -> Iterator[MeasuredValue]:
    """Take the numbers of a table of the user's own; what else its key tells apart is a setting, as layers may be."""
    without: dict[str, Any] = {"estimator": "", "momentum": math.nan}
    filled = rows.assign(**{column: value for column, value in without.items() if column not in rows})
    # A user's column may have the name of a setting, and keeps it.
    frame = filled.merge(networks, on="run", suffixes=("", " of the network"))

    keys = [*settings]
    for column in described.key:
        if column not in ("run", "step", *STATISTICS) and frame[column].nunique() > 1:
            keys.append(column)
    for column, meaning in described.numbers.items():
        title = f"{name}_{column}".replace("_", " ")
        # Captions have fields in braces, and leave a text of the user's as it is.
        escaped = meaning.replace("{", "{{").replace("}", "}}")
        caption = f"`{column}`: {escaped}."
        axis = Axis(f"{name}: {column}")
        yield MeasuredValue(f"{name}_{column}", title, axis, frame, keys, column, caption=caption, own_table=name)
