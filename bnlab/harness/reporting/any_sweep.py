"""The question that any sweep gets, made from its tables: figures of what was measured, by what was varied.

`describe_sweep` draws each measured value at the last step and, where several steps were measured, over the training;
beside them what the gap costs. `make_asked` draws one by the words of a command line. `_complete` chooses in both what
these words leave open, by the following rules:

1. *Varied* is what `MeasuredValue.keys` lists: settings in which networks differ, and what else a table tells apart, as
   layers. A setting that another one decides, with one value for each of its values, is named with that one. So is a
   setting of a component, as `norm.momentum`, with the component (`norm`), unless the words name it.
2. *Across* is the momentum where an estimator has several, else the first that is varied and has numbers. If nothing
   has, the means stand in a list, one below the other, with their estimators.
3. *Left* are then the estimators, if several stand in a figure, and behind them what else is varied. Momenta of one
   estimator are estimators of their own unless they are across.
4. *Colours* tell the first of these apart that the words do not make panels, *panels* all others.
5. A *line* is named by what its colour tells apart; in a list by its estimator, too.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from bnlab.harness.errors import NoRows, UserError, suggest
from bnlab.harness.reporting.axes import axis_of
from bnlab.harness.reporting.frames import DIFFERING, Tables, paired, put_in_order, select, select_share
from bnlab.harness.reporting.looks import OWN_COLOUR
from bnlab.harness.reporting.means_table import write_means, write_points
from bnlab.harness.reporting.measured import (
    LOST,
    STATISTICS,
    MeasuredValue,
    describe_runs,
    find_varied,
    list_measured,
    pair_gaps_with_losses,
)
from bnlab.harness.reporting.outcome import Outcome, decide_outcome
from bnlab.harness.reporting.plots import Axis, Curves, Dots, Forest, Plot
from bnlab.harness.reporting.question import Figure, Question
from bnlab.harness.reporting.tables import LoadedTables
from bnlab.harness.reporting.wording import estimator_label, name_rows, name_setting, name_value, write_value

_PANELS = 12  # the most that are drawn
_TIME = ("epoch", "step")


@dataclass(frozen=True)
class FigureRequest:
    """What somebody asked a figure to show; empty fields are chosen from the tables.

    Attributes:
        value: the measured column; empty: all that are drawn without a word.
        x: the column across.
        colour: the column of which each value has a colour.
        panels: columns whose values have panels of their own, beside those that nothing else tells apart.
        at: shares of the training, 0 to 1; none: the last step.
        where: by column, the values that are wanted, see `select`.
        against: the value with which others are compared, a difference within each network and step (for an estimator),
            or within each seed (for a setting); None: nothing is compared.
        along: the column that `against` is a value of.
        names: by column, words for its values, in the order in which they are drawn.
        colours: for values of the column `colour`, colours of matplotlib's in place of their own.
        title, x_label, y_label: in place of those that are chosen.
    """

    value: str = ""
    x: str = ""
    colour: str = ""
    panels: Sequence[str] = ()
    at: Sequence[float] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    against: Any = None
    along: str = "estimator"
    names: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    colours: Mapping[Any, str] = field(default_factory=dict)
    title: str = ""
    x_label: str = ""
    y_label: str = ""

    def list_columns(self) -> list[str]:
        """List the columns that it names."""
        given = [self.x, self.colour, *self.panels, *self.where, *self.names]
        if self.against is not None:
            given.append(self.along)
        return [column for column in dict.fromkeys(given) if column]


def describe_sweep(name: str, tables: LoadedTables) -> Outcome:
    """Make the question of a sweep, figures of all that was measured, with its networks and means in words.

    Raises:
        NoRows: there is nothing to draw, and no network that diverged or failed, which the table of means would list.
    """
    values = list_measured(tables)
    figures: dict[str, Figure] = {}
    for value in values:
        last = value.select_last()
        has_steps = value.rows.groupby("run")["step"].nunique().max() > 1
        # A single mean is no figure, unless there is nothing else to draw.
        if not has_steps or len(value.average(last)) > 1:
            figures[value.name] = _make_figure(value, last, FigureRequest(), "at the last step")
        if has_steps:
            over_epochs = FigureRequest(x="epoch")
            figures[f"{value.name}_training"] = _make_figure(value, value.rows, over_epochs, "over the training")
    figures |= _make_cost_figure(tables)
    outcome = decide_outcome(Question(figures=figures, name=name), {name: tables})
    return replace(outcome, networks=describe_runs(tables["runs"]), means=write_means(tables, values))


def make_asked(name: str, tables: LoadedTables, request: FigureRequest) -> Outcome:
    """Make a question of the figures that a request asks for, of its value or of each that has its columns.

    The outcome has the means of each figure in words.

    Raises:
        UserError: there is no such value or share, or no value has such a column.
    """
    values = list_measured(tables, request.value, request.list_columns())
    figures = {}
    for value in values:
        if not all(column in value.rows for column in request.list_columns()):
            continue
        rows = _choose_rows(value, request)
        if rows.empty:
            continue
        when = "over the training" if request.x in _TIME else "at the last step"
        if request.at:
            when = ", ".join(rows["when"].unique())
        words = [value.name, "by", request.x or "condition", request.colour, *request.panels]
        if request.against is not None:
            words += ["versus", str(request.against)]
        figures[re.sub(r"\W+", "_", " ".join(words)).strip("_")] = _make_figure(value, rows, request, when)
    if not figures:
        raise _explain_nothing(values, request)

    outcome = decide_outcome(Question(figures=figures, name=name), {name: tables})
    means = {key: write_points(figure.plot, outcome.read_figure(key)) for key, figure in figures.items()}
    return replace(outcome, networks=describe_runs(tables["runs"]), means=means)


def _explain_nothing(values: Sequence[MeasuredValue], request: FigureRequest) -> UserError:
    """Say why a request draws nothing: a column is missing, or a value that no row has, or no row has all of them."""
    known = dict.fromkeys(str(column) for value in values for column in value.rows)
    missing = [column for column in request.list_columns() if column not in known]
    if missing:
        return UserError(f"no column {missing[0]!r}: {suggest(missing[0], known)}")

    wanted = [*request.where.items(), (request.along, request.against)]
    for column, value in wanted:
        measured = {each for of_value in values if column in of_value.rows for each in of_value.rows[column].dropna()}
        for each in value if isinstance(value, list) else [value]:
            if each is not None and each not in measured:
                return NoRows(f"no {column} {each}: there are {', '.join(map(write_value, sorted(measured - {''})))}")
    return NoRows(f"nothing was measured that has {', '.join(request.list_columns())}, as asked")


def _choose_rows(value: MeasuredValue, request: FigureRequest) -> pd.DataFrame:
    """Choose the rows that a request asks for, compared if it says with what."""
    rows = value.rows
    if request.at:
        rows = pd.concat([_select_share(rows, share) for share in request.at]).rename(columns={"panel": "when"})
    elif request.x not in _TIME:
        rows = value.select_last()
    if request.against is None:
        return select(rows, **request.where)

    # What differs between both sides is wanted of what is compared, and not of the reference.
    differing = DIFFERING.get(request.along, (request.along,))
    of_compared = {column: wanted for column, wanted in request.where.items() if column in differing}
    of_both = {column: wanted for column, wanted in request.where.items() if column not in differing}
    both = select(rows, **of_both)
    matching = _list_matching(value, both, request)
    return select(paired(both, value.column, request.against, along=request.along, matching=matching), **of_compared)


def _select_share(rows: pd.DataFrame, share: float) -> pd.DataFrame:
    """Select the rows of all networks at a share of the training; UserError if one was not measured near it."""
    selected = select_share(rows, share)
    missing = rows[~rows["run"].isin(selected["run"])]
    if missing.empty:
        return selected
    measured = sorted({f"{done:.2g}" for done in missing["step"] / missing["steps"]})
    counts = f"{missing['run'].nunique()} of {rows['run'].nunique()}"
    raise UserError(f"at={share:g}: {counts} networks have no step near it; these have {', '.join(measured)}")


def _list_matching(value: MeasuredValue, rows: pd.DataFrame, request: FigureRequest) -> list[str]:
    """List the columns in which two rows agree that are compared."""
    if request.along != "estimator":
        # Networks of one seed, alike in all else that was varied.
        return ["seed", *(key for key in value.keys if key != request.along and not _is_part(key, [request.along]))]
    # Each momentum of an estimator is compared with the same one of the reference, if that has several.
    has_momenta = rows.loc[rows["estimator"] == request.against, "momentum"].nunique() > 1
    return ["run", "momentum"] if has_momenta else ["run"]


def _make_figure(value: MeasuredValue, rows: pd.DataFrame, asked: FigureRequest, when: str) -> Figure:
    """Declare a figure of the means of rows."""
    if asked.against is not None:
        words = name_value(asked.along, asked.against)
        if asked.along == "estimator":
            words = estimator_label(asked.against)
        when = f"{when}: difference to {words}"
        value = replace(value, axis=Axis(f"{value.axis.label}, minus that of {words}"))
    columns = ["when"] if "when" in rows and rows["when"].nunique() > 1 else []
    columns += [column for column in (asked.x, asked.colour, *asked.panels) if column]
    means = value.average(rows, *columns)
    request = _complete(value, means, asked)
    if request.panels:
        means = means.sort_values([*request.panels], kind="stable")
    for column, names in request.names.items():
        means = put_in_order(means, column, names)

    # Where momenta are across, they are no part of a name.
    described = means.assign(momentum=math.nan) if request.x == "momentum" else means
    # Both are named from the means as they are: a user's table may have a column `line` itself.
    panel = name_rows(described, _list_named_with(value, request.panels, request.x), request.names)
    named = means.assign(line=_name_lines(value, described, request), panel=panel)
    if request.colours and request.colour:
        named[OWN_COLOUR] = means[asked.colour or request.colour].map(request.colours)

    caption = value.caption
    is_unnamed = request.x and request.colour not in ("", "estimator") and "estimator" not in request.panels
    # Where the legend names settings alone, the caption names the statistics.
    if is_unnamed and means["estimator"].any():
        (statistics, *_) = name_rows(described, ["estimator"])
        caption += f" Statistics: {statistics}."
    panels = named["panel"].unique()
    if len(panels) > _PANELS and asked == FigureRequest(x=asked.x):
        caption += f" The first {_PANELS} of {len(panels)} panels are drawn; sweep fewer values to see others."
        named = select(named, panel=panels[:_PANELS])

    axis = replace(value.axis, label=asked.y_label or value.axis.label)
    if axis.linear:
        axis = _reach_zero(axis, named)
    title = asked.title or f"{value.title[0].upper()}{value.title[1:]} {when}"
    return Figure(title, caption.strip(), lambda tables: named, _choose_plot(value, named, request, axis))


def _choose_plot(value: MeasuredValue, named: pd.DataFrame, request: FigureRequest, axis: Axis) -> Plot:
    if not request.x:
        return Forest("line", axis)
    across = _choose_axis(request.x, named[request.x])
    others = [name_setting(column) for column in value.confounded.get(request.x, ())]
    if others:
        across = replace(across, label=f"{across.label}, with {' and '.join(others)}")
    if request.x_label:
        across = replace(across, label=request.x_label)
    # Estimators and numbers have colours of their own in all figures; what is named in other words has those of words.
    is_named = bool({request.colour, "momentum"} & {*request.names}) or request.colour in value.confounded
    if not request.colour or is_named:
        return Curves(request.x, "line", axis, across=across)
    values = named[request.colour]
    has_look = request.colour == "estimator" or (pd.api.types.is_numeric_dtype(values) and values.notna().all())
    return Curves(request.x, request.colour if has_look else "line", axis, across=across)


def _complete(value: MeasuredValue, means: pd.DataFrame, asked: FigureRequest) -> FigureRequest:
    """Choose what is across, in colours and in panels, by the rules above, as far as that was not asked for."""
    following = {*itertools.chain(*value.confounded.values())}
    varied = [key for key in value.keys if key not in following and means[key].nunique(dropna=False) > 1]
    varied = [key for key in varied if key in asked.list_columns() or not _is_part(key, varied)]
    if "when" in means:
        varied.append("when")
    across = asked.x or _choose_across(means, varied)
    others = [column for column in varied if column != across]

    statistics = means[[*STATISTICS]].drop_duplicates()
    if across == "momentum":
        statistics = statistics.drop_duplicates("estimator")
    if across and len(statistics) > 1:
        others.insert(0, "estimator")
    free = [column for column in others if column not in asked.panels]
    # An estimator's name and colour say its momentum.
    colour = "estimator" if asked.colour == "momentum" else asked.colour or next(iter(free), "")
    panels = [*dict.fromkeys([*asked.panels, *(column for column in others if column != colour)])]
    return replace(asked, x=across, colour=colour, panels=panels)


def _list_named_with(value: MeasuredValue, settings: Sequence[str], across: str) -> list[str]:
    """List settings, each with what is named with it: its parts, unless they are across, and what changes with it."""
    listed = []
    for setting in settings:
        parts = [key for key in value.keys if _is_part(key, [setting]) and key != across]
        listed += [setting, *parts, *value.confounded.get(setting, ())]
    return [*dict.fromkeys(listed)]


def _is_part(column: str, choices: Sequence[str]) -> bool:
    """Find out whether a column is a setting of a component that one of these columns chooses: `norm.momentum`."""
    choice, dot, _ = column.partition(".")
    return bool(dot) and choice in choices


def _name_lines(value: MeasuredValue, means: pd.DataFrame, request: FigureRequest) -> str | list[str]:
    """Name the line of each row, by rule 5; a figure's only line by its estimator, or by the measured column."""
    columns = _list_named_with(value, [request.colour] if request.colour else [], request.x)
    is_listed = not request.x and "estimator" not in (*columns, *request.panels)
    if means["estimator"].any() and (is_listed or not columns):
        columns.append("estimator")
    if not columns:
        return value.column
    return name_rows(means, columns, request.names)


def _choose_across(means: pd.DataFrame, varied: Sequence[str]) -> str:
    """Choose the column across; empty where only words were varied."""
    momenta = means.groupby("estimator")["momentum"].nunique()
    if momenta.max() > 1:
        return "momentum"
    numbers = means[[*varied]].select_dtypes("number")
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


def _make_cost_figure(tables: Tables) -> dict[str, Figure]:
    """Declare the figure of what the gap of running averages costs, where several networks and steps were measured."""
    if not len(tables.get("gaps", ())) or "accuracy" not in tables.get("evaluations", ()):
        return {}
    trained = tables["runs"][tables["runs"]["status"] != "diverged"]
    pairs = pair_gaps_with_losses({**tables, "runs": trained})
    if len(pairs) < 3:
        return {}
    numbers = [column for column in find_varied(tables["runs"])[0] if pd.api.types.is_numeric_dtype(pairs[column])]
    by = numbers[0] if numbers else "batch_size"
    caption = (
        "A dot is a network at one of the measured steps, with one momentum, if exact statistics are right on more "
        "than half of the test images there. The gap is between running averages and exact statistics of the same "
        "weights, in the layer where it is largest. Losses are on a linear scale up to 0.3 points, on a logarithmic "
        "one beyond."
    )
    dots = pairs.assign(panel="", mean=100 * pairs["lost"])
    plot = Dots("gap", by, Axis("gap in the worst layer (σ)", log=True), replace(LOST, linear=0.3))
    return {"cost": Figure("What the gap of running averages costs", caption, lambda tables: dots, plot)}
