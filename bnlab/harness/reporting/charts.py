"""Figures of what a sweep has varied: which settings are across, in colours and in panels.

Across is the momentum where an estimator has several, else the first number that was varied; words stand one below the
other. Colours tell estimators apart, or where there is one, the next setting. All further settings make panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from bnlab.harness.reporting.experiment import Figure
from bnlab.harness.reporting.frames.means import interval
from bnlab.harness.reporting.frames.selection import select, write_value
from bnlab.harness.reporting.plots import Curves, Forest, Plot
from bnlab.harness.reporting.style import AXES, Axis, estimator_label
from bnlab.harness.reporting.swept import Swept, say_each

PANELS = 12
"""The most that are drawn."""
_WIDE = 5.0  # a range of positive numbers from which on they are drawn on a logarithmic axis
_MARGIN = 0.05  # of the axis, at both ends of it
_CROWDED = 0.04  # of the axis: two ticks that are nearer would be written over each other


@dataclass(frozen=True)
class Measure:
    """Column of a table that is drawn, and how.

    Attributes:
        name: of the figures' files.
        title: what the figures' titles begin with.
        axis: of the means; its label heads the table's column.
        reading: a sentence for captions.
        frame: the rows of all steps, with their networks' settings.
        value, scale, geometric: see `frames.interval`.
    """

    name: str
    title: str
    axis: Axis
    reading: str
    frame: pd.DataFrame
    value: str
    scale: float = 1
    geometric: bool = False

    def average(self, frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
        """Average over seeds, with intervals, see `frames.interval`."""
        return interval(frame, self.value, by, scale=self.scale, geometric=self.geometric)


@dataclass(frozen=True)
class Layout:
    """Places of the columns in a figure that tell its rows apart.

    Attributes:
        across: the column across; empty: means are across, and conditions one below the other.
        by: what has colours, or is one below the other: "estimator" or a setting; empty: nothing.
        panels: settings of which each combination has a panel.
    """

    across: str
    by: str
    panels: list[str]


def choose_layout(frame: pd.DataFrame, swept: Swept, across: str = "") -> Layout:
    """Choose where settings stand that differ in these rows; what is across may be given."""
    momenta = frame.groupby("estimator")["momentum"].nunique()
    has_momenta = momenta.max() > 1
    varied = [column for column in swept.settings if frame[column].nunique(dropna=False) > 1]
    if not across and has_momenta:
        across = "momentum"
    if not across:
        across = _find_number(frame, varied)
    others = [column for column in varied if column != across]

    has_kinds = frame["estimator"].nunique() > 1
    if across != "momentum":
        has_kinds = has_kinds or has_momenta
    if across and has_kinds:
        return Layout(across, "estimator", others)
    by = others[0] if others else ""
    return Layout(across, by, others[1:])


def _find_number(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Find the first of these columns that has numbers; empty if all have words."""
    for column in columns:
        if pd.api.types.is_numeric_dtype(frame[column]):
            return column
    return ""


def declare_figure(
    title: str,
    measure: Measure,
    frame: pd.DataFrame,
    layout: Layout,
    swept: Swept,
    left_out: list[str],
) -> Figure:
    """Declare a figure with what its layout tells apart."""
    named = _name_rows(frame, layout, swept)
    panels = list(named["panel"].unique())
    has_too_many = len(panels) > PANELS
    if has_too_many:
        drawn = panels[:PANELS]
        named = select(named, panel=drawn)
        left_out.append(f"{title}: of {len(panels)} panels {PANELS} are drawn, up to {drawn[-1]}.")

    keys = _list_keys(layout)
    means = measure.average(named, keys)
    plot = _choose_plot(measure, means, layout, swept)

    caption = _write_caption(measure, named, layout, swept)
    if means["n"].min() == 1:
        caption = f"{caption} What is of one seed has no interval."
    if has_too_many:
        caption = f"{caption} The first {PANELS} of {len(panels)} panels are drawn."
    return Figure(title, caption.strip(), lambda tables: means, plot)


def _list_keys(layout: Layout) -> list[str]:
    """List the columns that tell apart the means of a figure."""
    keys = ["panel", "line"]
    if layout.by == "estimator":
        keys = ["panel", "estimator", "momentum"]
    if layout.across and layout.across not in keys:
        keys.append(layout.across)
    return keys


def _write_caption(
    measure: Measure,
    named: pd.DataFrame,
    layout: Layout,
    swept: Swept,
) -> str:
    """Say how to read a figure."""
    caption = measure.reading
    if not layout.across:
        return caption

    if layout.by not in ("", "estimator"):
        estimator = _label_estimators(named, layout)[0]
        caption = f"{caption} Statistics: {estimator}."
    if named[layout.across].isna().any():
        whose = "statistics" if layout.across == "momentum" else "networks"
        setting = swept.name_setting(layout.across)
        caption = f"{caption} Straight across the panel: {whose} without {setting}."
    return caption.replace("{", "{{").replace("}", "}}")


def _name_rows(frame: pd.DataFrame, layout: Layout, swept: Swept) -> pd.DataFrame:
    """Put the rows in order, with their words in the columns `panel` and `line`, and across where words are needed."""
    columns = [column for column in (*layout.panels, layout.by, layout.across) if column]
    ordered = frame.sort_values(columns, kind="stable") if columns else frame

    panels = _name_panels(ordered, layout, swept)
    lines = _name_lines(ordered, layout, swept)
    named = ordered.assign(panel=panels, line=lines)

    if layout.across:
        across = named[layout.across]
        axis = _choose_axis(layout.across, across, swept)
        if not axis.log and not axis.ticks:
            named[layout.across] = across.map(write_value, na_action="ignore")
    return named


def _name_panels(frame: pd.DataFrame, layout: Layout, swept: Swept) -> list[str]:
    """Name the panel of each row."""
    names = [""] * len(frame)
    for column in layout.panels:
        said = say_each(frame[column], partial(swept.say_setting, column))
        names = [f"{before}, {words}" if before else words for before, words in zip(names, said, strict=True)]
    return names


def _name_lines(frame: pd.DataFrame, layout: Layout, swept: Swept) -> list[str]:
    """Name the series of each row, or its place where conditions are one below the other."""
    estimators = _label_estimators(frame, layout)
    if layout.by in ("", "estimator"):
        return estimators

    settings = say_each(frame[layout.by], partial(swept.say_setting, layout.by))
    if layout.across:
        return settings
    pairs = zip(settings, estimators, strict=True)
    return [f"{setting}: {estimator}" for setting, estimator in pairs]


def label_estimators(frame: pd.DataFrame) -> list[str]:
    """Name the estimator of each row, with its momentum."""
    number = frame.groupby(["estimator", "momentum"], dropna=False, sort=False).ngroup()
    firsts = frame[~number.duplicated()]
    pairs = zip(firsts["estimator"], firsts["momentum"], strict=True)
    labels = [estimator_label(name, momentum) for name, momentum in pairs]
    return [labels[place] for place in number]


def _label_estimators(frame: pd.DataFrame, layout: Layout) -> list[str]:
    """Name the estimator of each row, without the momentum where that is across."""
    if layout.across == "momentum":
        return say_each(frame["estimator"], estimator_label)
    return label_estimators(frame)


def _choose_plot(
    measure: Measure,
    means: pd.DataFrame,
    layout: Layout,
    swept: Swept,
) -> Plot:
    """Choose the plot of a layout, and its axes."""
    axis = measure.axis
    if not axis.log:
        axis = replace(axis, limits=_choose_limits(means))
    if not layout.across:
        return Forest("line", axis)

    by = "estimator" if layout.by == "estimator" else "line"
    values = means[layout.across]
    across = _choose_axis(layout.across, values, swept)
    if layout.across != "epoch":  # trainings may have different lengths
        across = replace(across, limits=_choose_ends(values, across.log))
    return Curves(layout.across, by, axis, across=across)


def _choose_limits(means: pd.DataFrame) -> tuple[float, float]:
    """Choose the ends of an axis of percentages that shows all means and intervals, as far as there are percentages."""
    low = float(means[["mean", "low"]].min().min())
    high = float(means[["mean", "high"]].max().max())
    margin = max(1.0, 0.05 * (high - low))
    return max(0.0, low - margin), min(101.0, high + margin)


def _choose_ends(values: pd.Series, is_log: bool) -> tuple[float, float] | None:
    """Choose the ends of the axis across, the same in all panels; None for words, or one number."""
    if values.nunique() < 2 or not pd.api.types.is_numeric_dtype(values):
        return None
    low = float(values.min())
    high = float(values.max())
    if is_log:
        factor = (high / low) ** _MARGIN
        return low / factor, high * factor
    margin = _MARGIN * (high - low)
    return low - margin, high + margin


def _choose_axis(column: str, values: pd.Series, swept: Swept) -> Axis:
    """Choose the axis across; an axis without ticks is for numbers that have to be told apart as words."""
    words = Axis(swept.name_setting(column))
    known = AXES.get(column, words)
    is_number = pd.api.types.is_numeric_dtype(values)
    if column in ("momentum", "epoch") or not is_number:
        return known

    numbers = values.dropna().unique()
    low = numbers.min()
    high = numbers.max()
    is_log = bool(low > 0 and high >= _WIDE * low)
    if not _is_crowded(numbers, is_log):
        return Axis(known.label, log=is_log, ticks="values")
    if is_log:
        return Axis(known.label, log=True, ticks="125")
    return Axis(known.label)


def _is_crowded(numbers: np.ndarray, is_log: bool) -> bool:
    """Decide if two numbers are so near on an axis that they would be written over each other."""
    places = np.sort(numbers.astype(float))
    if is_log:
        places = np.log(places)
    distances = np.diff(places)
    nearest = distances.min(initial=np.inf)
    length = places[-1] - places[0]
    return bool(nearest < _CROWDED * length)
