"""Figures of any sweep, without a question: gap and accuracy by what was swept, declared as an `Experiment`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.charts import Measure, choose_layout, declare_figure, label_estimators
from bnlab.harness.reporting.experiment import Experiment, Figure
from bnlab.harness.reporting.frames.layers import BEHIND, gap_over_layers
from bnlab.harness.reporting.frames.selection import OtherThan, Tables, list_values, rows, select, write_value
from bnlab.harness.reporting.outcome import count_networks, format_number, say_unfinished
from bnlab.harness.reporting.plots import GAP
from bnlab.harness.reporting.style import Axis
from bnlab.harness.reporting.swept import Swept, find_swept
from bnlab.harness.small_batches import ADVICE, MOST_NAMED, count_last, count_training
from bnlab.names import EstimatorName

_MOMENTA = 6  # the most momenta that have a line over the training
_NEAR_END = 0.02  # of the training
_TITLES = {"test": "Test accuracy", "val": "Validation accuracy", "train": "Training accuracy"}


@dataclass(frozen=True)
class Overview:
    """Figures and a table of a sweep without a question.

    Attributes:
        experiment: its figures.
        swept: what was varied, and the tables that the figures are drawn from.
        table: in words, a row for each condition at the end of training.
        notes: sentences on the networks, and on what is left out.
    """

    experiment: Experiment
    swept: Swept
    table: pd.DataFrame
    notes: list[str]


def make_overview(name: str, tables: Tables) -> Overview:
    """Declare the figures of a sweep, and write the table of its means.

    Args:
        name: of the sweep.
        tables: those of the sweep, see `tables.load`.

    Raises:
        NoRows: nothing has been measured that is drawn.
    """
    swept = find_swept(tables)
    measures = [*_find_gaps(swept), *_find_accuracies(swept)]
    if not measures:
        raise NoRows("no network has a gap or an accuracy; sweep with measurements=[gaps,evaluations]")

    figures: dict[str, Figure] = {}
    left_out: list[str] = []
    for measure in measures:
        figures |= _declare_figures(measure, swept, left_out)

    experiment = Experiment(bears_on=(), figures=figures, claims={}, name=name)
    table = _write_table(measures, swept)
    return Overview(experiment, swept, table, _write_notes(swept, left_out))


def _declare_figures(measure: Measure, swept: Swept, left_out: list[str]) -> dict[str, Figure]:
    """Declare the figures of a measure by their names; what they leave out is added to `left_out`."""
    steps = measure.frame.groupby("run")["step"].nunique()
    has_steps = steps.max() > 1
    last = _select_last(measure.frame)
    is_single = len(last) == last["seed"].nunique()  # one mean, with which the figure of all steps ends

    figures = {}
    if len(last) and not (is_single and has_steps):
        figures[measure.name] = _draw_last(measure, last, swept, left_out)
    if has_steps:
        figures[f"{measure.name}_training"] = _draw_training(measure, swept, left_out)
    return figures


def _write_notes(swept: Swept, left_out: list[str]) -> list[str]:
    """Write sentences on the networks, and on what is not drawn."""
    runs = swept.tables["runs"]
    notes = [f"{count_networks(runs)}.{say_unfinished(runs)}"]
    notes += _name_diverged(swept)
    notes += _name_small_batches(runs)
    for setting, leader in swept.companions.items():
        notes.append(f"{setting} differs together with {leader}.")

    evaluations = swept.tables.get("evaluations", pd.DataFrame())
    for column in ("split", "shift"):
        values = list_values(evaluations.get(column, pd.Series()))
        if "," in values:
            notes.append(f"The table evaluations has rows of {column} {values}; one is drawn.")

    notes += dict.fromkeys(left_out)
    if left_out:
        notes.append("Where you want others, sweep fewer values under another name=...; no network is trained again.")
    return notes


def _name_diverged(swept: Swept) -> list[str]:
    """Say in a sentence which networks have diverged, by their settings; none where there is nothing to say."""
    runs = swept.tables["runs"]
    diverged = runs.loc[runs["status"] == "diverged", swept.settings]
    conditions = []
    for _, row in diverged.drop_duplicates().iterrows():
        words = [swept.say_setting(str(column), value) for column, value in row.items()]
        conditions.append(", ".join(words))
    if not any(conditions):
        return []

    named = "; ".join(conditions)
    return [f"Diverged: {named}."]


def _name_small_batches(runs: pd.DataFrame) -> list[str]:
    """Say in a sentence how small the last batch of an epoch was, where networks trained on it with batch statistics.

    Nothing of a last batch that has more than half of the images of a full one.
    """
    read = runs.reindex(columns=["data.images", "batch_size", "norm_batch_size", "steps", "last_batch"])
    kept = read[read["norm_batch_size"].notna() & (read["last_batch"] != "drop")]
    trainings = kept[["batch_size", "data.images", "steps"]].dropna().astype(int).drop_duplicates()

    sizes: dict[tuple[int, int], None] = {}
    for size, images, steps in trainings.sort_values("batch_size").itertuples(index=False):
        left = count_last(count_training(images), size, steps)
        if left is not None:
            sizes[left, size] = None
    if not sizes:
        return []

    named = [f"{left:,} images of {size:,}" for left, size in list(sizes)[:MOST_NAMED]]
    more = len(sizes) - MOST_NAMED
    if more > 0:
        named.append(f"{more} more")
    return [f"The last batch of an epoch had {', '.join(named)}, {ADVICE}."]


def _find_gaps(swept: Swept) -> list[Measure]:
    """Find gaps of the mean over layers; none where no network has batch norm, and none of exact statistics."""
    gaps = swept.tables.get("gaps", pd.DataFrame())
    if len(gaps):
        gaps = select(_name_populations(gaps), estimator=OtherThan("exact"))
    if gaps.empty:
        return []

    averaged = gap_over_layers(gaps, "mean_gap")
    is_behind = averaged["layers"] == BEHIND
    has_behind = is_behind.groupby(averaged["run"]).transform("any")
    chosen = averaged[is_behind | ~has_behind]
    joined = rows({**swept.tables, "gaps": chosen}, "gaps", by=swept.settings)  # now that rows are few
    layers = "root mean square over the layers behind the first, whose input is standardized by hand"
    if not has_behind.all():
        layers = f"{layers}; of networks with a single layer, that one"
    measure = Measure(
        name="gap",
        title="Gap of the mean",
        axis=GAP,
        reading=f"Distance from the exact population mean, in standard deviations: {layers}.",
        frame=joined,
        value="mean_gap",
        geometric=True,
    )
    return [measure]


def _find_accuracies(swept: Swept) -> list[Measure]:
    """Find accuracies on the test images as they are, or on what was predicted instead; none without predictions."""
    try:
        found = rows(swept.tables, "evaluations", by=swept.settings)
    except NoRows:
        return []
    found = _prefer(found, "split", "test")
    found = _prefer(found, "shift", "none")
    found = _name_populations(found)
    split = found["split"].iloc[0]
    title = _TITLES[split]
    reading = ""
    if found["estimator"].nunique() > 1:
        reading = "Accuracy of the same networks under each kind of statistics."
    measure = Measure(
        name="accuracy",
        title=title,
        axis=Axis(f"{title.lower()} (%)"),
        reading=reading,
        frame=found,
        value="accuracy",
        scale=100,
    )
    return [measure]


def _name_populations(frame: pd.DataFrame) -> pd.DataFrame:
    """Name statistics of other images than the training split as it is after these."""
    usual = ["train", "test", "none"]  # statistics of test batches are named by their rule
    is_usual = frame["statistics_split"].isin(usual)
    others = frame[~is_usual]
    names = []
    for name, split in zip(others["estimator"], others["statistics_split"], strict=True):
        full = EstimatorName.parse(name).add("statistics_split", split)
        names.append(str(full))

    named = frame.copy()
    named.loc[~is_usual, "estimator"] = names
    return named


def _prefer(frame: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """Select the rows with a value of a column, or with its first value where none has that."""
    chosen = frame[frame[column] == value]
    if chosen.empty:
        chosen = frame[frame[column] == frame[column].iloc[0]]
    return chosen


def _select_last(frame: pd.DataFrame) -> pd.DataFrame:
    """Select each network's last step; not of those that have diverged, or were not measured as late as others."""
    is_trained = frame["status"] != "diverged"
    trained = frame[is_trained]
    share = trained["step"] / trained["steps"]
    by_run = share.groupby(trained["run"])
    last = by_run.transform("max")

    is_last = share == last
    latest = last.max()
    is_late = last >= latest - _NEAR_END
    return trained[is_last & is_late]


def _draw_last(measure: Measure, last: pd.DataFrame, swept: Swept, left_out: list[str]) -> Figure:
    """Declare the figure of the last step; what it leaves out is added to `left_out`."""
    layout = choose_layout(last, swept)
    is_end = last["step"] == last["steps"]
    when = "at the end of training" if is_end.all() else "at the last measured step"
    title = f"{measure.title} {when}"
    if layout.across:
        setting = swept.name_setting(layout.across)
        title = f"{title}, by {setting}"
    return declare_figure(title, measure, last, layout, swept, left_out)


def _draw_training(measure: Measure, swept: Swept, left_out: list[str]) -> Figure:
    """Declare the figure of all steps; what it leaves out is added to `left_out`."""
    frame = measure.frame
    momenta = sorted(frame["momentum"].dropna().unique())
    count = len(momenta)
    if count > _MOMENTA:
        drawn = _thin_out(momenta)
        frame = select(frame, momentum=[None, *drawn])
        left_out.append(f"Over the training {_MOMENTA} of {count} momenta are drawn.")

    layout = choose_layout(frame, swept, across="epoch")
    title = f"{measure.title} over the training"
    return declare_figure(title, measure, frame, layout, swept, left_out)


def _thin_out(momenta: list[float]) -> list[float]:
    """Choose as many momenta as are drawn, with the smallest and the largest."""
    places = np.linspace(0, len(momenta) - 1, _MOMENTA)
    return [momenta[round(place)] for place in places]


def _write_table(measures: Sequence[Measure], swept: Swept) -> pd.DataFrame:
    """Write means with their intervals at the last step: a row for each condition, with settings and statistics."""
    keys = [*swept.settings, "estimator", "momentum"]
    table = pd.DataFrame(columns=keys)
    for measure in measures:
        last = _select_last(measure.frame)
        numbers = _write_numbers(measure, last, keys)
        if len(table):
            numbers = table.merge(numbers, on=keys, how="outer")
        table = numbers
    table = table.sort_values(keys, kind="stable")

    written = pd.DataFrame(index=table.index)
    for column in swept.settings:
        words = swept.name_setting(column)
        written[words] = table[column].map(write_value, na_action="ignore")
    written["statistics"] = label_estimators(table)
    for measure in measures:
        label = measure.axis.label
        written[label] = table[label]
    counts = [f"n of {measure.name}" for measure in measures]
    written["n"] = [_join_counts(row) for row in table[counts].to_numpy(float)]
    return written.astype(object).fillna("")


def _write_numbers(measure: Measure, last: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Write the means of one measure with their intervals, and how many seeds they are of, beside the keys."""
    means = measure.average(last, keys)
    bounds = zip(means["mean"], means["low"], means["high"], strict=True)
    written = means[keys].copy()
    written[measure.axis.label] = [format_number(*each) for each in bounds]
    written[f"n of {measure.name}"] = means["n"]
    return written


def _join_counts(counts: np.ndarray) -> str:
    """Write how many seeds each measure has, once where all have as many; NaN where it was not measured."""
    written = [f"{count:g}" for count in counts[~np.isnan(counts)]]
    return ", ".join(dict.fromkeys(written))
