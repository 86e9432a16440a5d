"""Redrawing a paper: figures of ours with its numbers in grey, the claims on it, and its page.

Tables, verdicts and drawing are those of questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from bnlab.harness.errors import UserError, suggest
from bnlab.harness.lab.papers import DeclaredFigure, DeclaredMargin, Number, Paper, make_declared
from bnlab.harness.lab.registry import find_experiment, list_questions
from bnlab.harness.own import import_object
from bnlab.harness.reporting import plots
from bnlab.harness.reporting.experiment import (
    Claim,
    Experiment,
    Figure,
    Margin,
    PartBelow,
    Score,
    Span,
    Tables,
    find_conditions,
)
from bnlab.harness.reporting.frames import OtherThan, name_panels, put_in_order, score
from bnlab.harness.reporting.outcome import READING, Outcome, decide_outcome
from bnlab.harness.reporting.page import render
from bnlab.harness.reporting.plots import Axis, Curves, Forest, Plot
from bnlab.harness.reporting.tables import load
from bnlab.harness.reporting.wording import name_value

T = TypeVar("T")
THEIRS = "theirs"
"""In legends and names of files: numbers that a paper prints."""
_GREY = "Grey: their numbers, on their own task and networks, from the sources in the table below."
_GREY_BARS = "Grey intervals are two standard deviations over its runs to each side."


def make_experiments(paper: Paper) -> list[Experiment]:
    """Make an experiment of each one whose tables it reads: with its figures of them, and its claims by its names."""
    experiments = []
    for name in paper.list_experiments():
        figures = {key: _make_figure(paper, key) for key, each in paper.figures.items() if each.experiment == name}
        claims = {key: _make_claim(paper, key) for key, each in paper.claims.items() if each.experiment == name}
        made = Experiment(figures=figures, claims=claims, name=name, question=paper.question)
        experiments.append(made)
    return experiments


def select_conditions(paper: Paper, outcome: Outcome) -> Outcome:
    """Select the verdicts in those conditions that the paper's claims mean."""
    meant = [find_conditions(outcome.frame, name, paper.claims[name].conditions) for name in outcome.experiment.claims]
    # The empty beginning is there for a paper without claims, because pandas joins no empty list.
    return replace(outcome, frame=pd.concat([outcome.frame[:0], *meant]))


def decide_new_claims(paper: Paper, results: Path) -> Outcome:
    """Decide the claims that no experiment has, as those of one experiment of the paper's name."""
    claims: dict[str, Claim] = {}
    parts = []
    for experiment in make_experiments(paper):
        new = {key: claim for key, claim in experiment.claims.items() if not paper.claims[key].of}
        if new:
            parts.append(decide_outcome(replace(experiment, claims=new), load(experiment.name, results)))
            claims |= new
    whole = Experiment(figures={}, claims=claims, name=paper.name, question=paper.question)
    basis = "; ".join(dict.fromkeys(part.basis for part in parts))
    return Outcome(whole, pd.concat([part.frame for part in parts], ignore_index=True), basis, networks="")


def write_paper(paper: Paper, outcomes: Sequence[Outcome], command: str) -> str:
    """Write the README.md of a paper.

    Args:
        paper: the paper, whose file has the order.
        outcomes: of those of its experiments that have been measured, with whole captions.
        command: what writes it again.
    """
    values: dict[str, Any] = {"figures": {}, "verdicts": {}}
    for outcome in outcomes:
        values["figures"] |= outcome.experiment.figures
        # `list_claims` has the order of `claims`.
        values["verdicts"] |= zip(outcome.experiment.claims, outcome.list_claims(), strict=True)
    measured = [outcome.experiment.name for outcome in outcomes]
    values["missing"] = [name for name in paper.list_experiments() if name not in measured]
    values |= {"outcomes": outcomes, "command": command, "questions": list_questions()}
    values["reading"] = READING.format(rules="../../../../docs/verdicts.md")
    return render("paper.md", paper=paper, **values)


def _make_claim(paper: Paper, key: str) -> Claim:
    """Make a claim, or find the one of its experiment that it names."""
    declared = paper.claims[key]
    where = f"{paper.name}, claim {key}"
    if declared.of:
        return _find_part("claim", find_experiment(declared.experiment).claims, declared.of, where)
    if declared.score is None or declared.margin is None or declared.lines is None:
        raise UserError(f"{where}: it needs of, or text, score, margin and lines")
    compute = _make_score(declared.score, where)
    margin = _make_margin(declared.margin, where)
    return Claim(declared.text, compute, margin, lines=declared.lines, post_hoc=declared.post_hoc)


def _make_margin(declared: Mapping[str, Any], where: str) -> Margin:
    """Make a margin; a reason in capitals is a constant of experiments/margins.py."""
    given = make_declared(DeclaredMargin, declared, where)
    low, high = given.within or (given.above, given.below)
    if low == -math.inf and high == math.inf:
        raise UserError(f"{where}: its margin needs above, below or within")
    reason = given.reason
    if reason.isupper():
        reason = import_object("reason", f"experiments.margins.{reason}")
    return Margin(low, high, given.unit, reason)


def _make_score(declared: Mapping[str, Any], where: str) -> Score:
    if "source" not in declared:
        raise UserError(f"{where}: its score needs a source, a table or a function")
    given: dict[str, Any] = {}
    for name, value in declared.items():
        if isinstance(value, Mapping):
            # In a file, {not: VALUE} stands for all values but this one.
            given[name] = OtherThan(value["not"])
        elif isinstance(value, list):
            given[name] = tuple(value)
        else:
            given[name] = value
    source = given.pop("source")

    def compute(tables: Tables) -> pd.DataFrame:
        # Imported only now: a function of an experiment that is not measured yet may not be there.
        rows = import_object("source", source) if "." in source else source
        return score(rows, **given)(tables)

    return compute


def _make_figure(paper: Paper, key: str) -> Figure:
    """Make a figure of ours, or find the one of its experiment that it names, beside the printed numbers it marks."""
    declared = paper.figures[key]
    where = f"{paper.name}, figure {key}"
    marks = _find_marks(paper, key)
    # A span is drawn in our panels. A number is of another task, and stands in a panel below.
    apart = [mark for mark in marks if not mark.span]
    if declared.of:
        known = _find_part("figure", find_experiment(declared.experiment).figures, declared.of, where)
        printed = _make_printed_panel(known.plot, apart)
        return replace(known, caption=_write_caption(known.caption, marks), below=printed)

    caption = _write_caption(declared.caption, marks)
    plot = _make_plot(declared.plot, where)
    printed = _make_printed_panel(plot, apart)
    if declared.score is None:
        if printed is None:
            raise UserError(f"{where}: it needs a score, or marks")
        return Figure(declared.title, caption, printed.score, printed.plot)

    named: Curves | Forest
    if isinstance(plot, Forest):
        coloured = plot.series
        named = replace(plot, series="words")
    else:
        coloured = plot.by
        named = replace(plot, by="words")
    # Values that have colours give way to their names, if the file gives them names.
    if coloured in declared.names:
        plot = named
    spans = [_make_span(mark) for mark in marks if mark.span]
    ours = _name_ours(declared, coloured, where)
    return Figure(declared.title, caption, ours, plot, below=printed, spans=spans)


def _write_caption(caption: str, marks: Sequence[Number]) -> str:
    """Add to a caption what grey is."""
    sentences = [caption]
    if marks:
        sentences.append(_GREY)
    if any(mark.sd > 0 for mark in marks):
        sentences.append(_GREY_BARS)
    return " ".join(sentences).strip()


def _find_part(kind: str, known: Mapping[str, T], of: str, where: str) -> T:
    """Find the claim or the figure of an experiment that is named, as `gap.layers`."""
    _, _, name = of.partition(".")
    if name not in known:
        raise UserError(f"{where}: no {kind} {of!r}; {suggest(name, known)}")
    return known[name]


def _find_marks(paper: Paper, key: str) -> list[Number]:
    """Find the printed numbers that a figure marks."""
    by_id = {number.id: number for number in paper.printed}
    marks = []
    for mark in paper.figures[key].marks:
        if mark not in by_id:
            raise UserError(f"{paper.name}, figure {key}: no printed number {mark!r}; {suggest(mark, by_id)}")
        marks.append(by_id[mark])
    return marks


def _make_plot(declared: Mapping[str, Any], where: str) -> Curves | Forest:
    kinds: dict[str, type[Curves] | type[Forest]] = {"Curves": Curves, "Forest": Forest}
    given = dict(declared)
    kind = given.pop("kind", "")
    if kind not in kinds:
        raise UserError(f"{where}: kind {kind!r}; {suggest(kind, kinds)}")
    axis = given.pop("axis", {})
    if isinstance(axis, str):
        axis = import_object("axis", f"{plots.__name__}.{axis}")
    else:
        axis = make_declared(Axis, axis, where)
    given["y" if kind == "Curves" else "x"] = axis
    if "across" in given:
        given["across"] = make_declared(Axis, given["across"], where)
    return make_declared(kinds[kind], given, where)


def _make_span(mark: Number) -> Span:
    low, high = mark.span
    numbers = " to ".join(f"{number:,g}" for number in dict.fromkeys(mark.span))
    return Span(low, high, f"{THEIRS}: {numbers} {mark.unit}")


def _name_ours(declared: DeclaredFigure, coloured: str, where: str) -> Score:
    """Make the score of our panels, with names of values and panels.

    Names of the column `coloured`, whose values have colours, become the column `words`, which a legend shows as it is.
    """
    compute = _make_score(declared.score or {}, where)

    def compute_named(tables: Tables) -> pd.DataFrame:
        frame = compute(tables)
        for column, names in declared.names.items():
            frame = put_in_order(frame, column, names)
            frame[column] = frame[column].replace(dict(names))
            if column == coloured:
                frame["words"] = frame[column]

        # An empty list asks for a single panel. Without a list, the panels of the score stay.
        if declared.panels:
            words = []
            for column in declared.panels:
                value = f"{{{column}}}"
                words.append(value if column in declared.names else name_value(column, value))
            frame = name_panels(frame, ", ".join(words))
        elif declared.panels is not None or "panel" not in frame:
            frame["panel"] = ""
        return frame

    return compute_named


def _make_printed_panel(plot: Plot, marks: Sequence[Number]) -> PartBelow | None:
    """Make the panel of printed numbers that have another task than ours: it has axes of its own. None without any."""
    if not marks:
        return None
    frame = _tabulate(marks)
    axis = Axis(", ".join(dict.fromkeys(mark.unit for mark in marks)))
    tasks = frame["panel"].unique()
    title = THEIRS
    if len(tasks) == 1:
        title = f"{THEIRS}: {tasks[0]}"

    if isinstance(plot, Curves):
        # All lines share one panel, so that each has to name its task if there are several.
        names = frame["series"] if len(tasks) == 1 else frame["panel"] + ", " + frame["series"]
        lines = frame.assign(line=f"{THEIRS}: " + names, panel=title).rename(columns={"x": plot.x})
        return PartBelow(lambda tables: lines, replace(plot, by="line", y=axis), THEIRS)

    # What there is more of is listed downwards, and the other told apart by shapes.
    by, other = ("panel", "series") if len(tasks) > frame["series"].nunique() else ("series", "panel")
    rows = frame.assign(name=frame[by], line=f"{THEIRS}: " + frame[other], panel=title)
    series = "line" if frame[other].nunique() > 1 else ""
    return PartBelow(lambda tables: rows, Forest("name", axis, series=series), THEIRS)


def _tabulate(marks: Sequence[Number]) -> pd.DataFrame:
    """Put printed numbers into rows as those of `frames.interval`; their intervals are two standard deviations."""
    columns = ("panel", "series", "x", "value", "sd")
    frame = pd.DataFrame([{column: getattr(mark, column) for column in columns} for mark in marks])
    half = 2 * frame.pop("sd")
    mean = frame.pop("value")
    # n is 0 because no seeds of ours are behind these numbers, and `printed` draws them in grey.
    return frame.assign(mean=mean, low=mean - half, high=mean + half, n=0, log=False, printed=True)
