"""bnlab report: figures and verdicts of questions, of any sweep, and of papers that are redrawn."""

from __future__ import annotations

import gc
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bnlab.common.printing import find_width
from bnlab.harness.errors import NoRows, UserError, where_raised
from bnlab.harness.lab.command import format_table, run_command, write_command
from bnlab.harness.lab.registry import REFERENCE, find_paper, find_question, list_papers, list_questions, write_pages
from bnlab.harness.records import read_commands

# All of these take long to import. Functions import what they need, so that a mistake is answered before that, and
# Ctrl-C in the meantime is caught by `run_command`.
if TYPE_CHECKING:
    from bnlab.harness.reporting.any_sweep import FigureRequest
    from bnlab.harness.reporting.drawing import PrintFile
    from bnlab.harness.reporting.outcome import Outcome
    from bnlab.harness.reporting.question import Figure, Question, Tables
    from bnlab.harness.reporting.tables import LoadedTables

USAGE = """usage: bnlab report [experiment=NAME] [name=NAME] [paper=NAME] [results=FOLDER]
                    [x=COLUMN] [colour=COLUMN] [panels=COLUMN,...] [value=COLUMN] [at=SHARE,...]
                    [where.COLUMN=VALUE,...] [versus=ESTIMATOR] [names.COLUMN={VALUE: WORDS, ...}]
                    [figure.width=INCHES] [figure.format=FORMAT] [figure.style=FILE]

experiment=NAME    figures and verdicts of the question NAME, and its page; with name=SWEEP by the tables of that sweep,
                   in the folder SWEEP/NAME
name=NAME          figures and a page of any sweep, by what was swept; where a question has its name, of this question
paper=NAME         a published paper beside what is found here, by the tables that are there, and its page; several with
                   commas between them, or all
without these      figures, verdicts and pages of all questions that have results; the committed ones:
                   results=results/reference

Beside name=, a figure as you want it of each value that has these columns, and its means with their intervals:
x=momentum         what is across: a setting by its name on the command line, momentum, epoch, step, or depth (layers)
colour=estimator   what has a colour for each value
panels=layer       what has a panel for each value; all that was varied and is told apart by nothing else has one, too
value=mean_gap     what is drawn: a column of gaps, evaluations or a table of your own; else all that has these columns
at=0.5             shares of the training; else the last step, or with x=epoch all of them
where.norm=batch   rows with this value, or with one of several
versus=ema         the difference to this estimator, within each network and step; versus.norm=batch to another value of
                   a setting, within each seed
names.norm='{batch: batch norm, group: group norm}'   words for values, in the order in which they are drawn
colours='{batch: black, group: C1}'   matplotlib's colours for values of colour=, in place of their own
title=WORDS, label.x=WORDS, label.y=WORDS   in place of those that are chosen

figure.width=3.25  of the files for papers beside the PNGs of the page, in inches; figure.format=pdf or svg;
                   figure.style=FILE.mplstyle, with settings of matplotlib's such as font.size: 8

A page is report.html, in the folder of the results, of a paper in papers/NAME there. Of papers, and of all questions
at once, there is a README.md beside it, too, and where questions of bnlab's own have results, ANSWERS.md and
HYPOTHESES.md.

The exit code is 1 where a claim could not be scored or a figure not drawn and the others are there, and 2 where there
is nothing."""
_WORDS = ("experiment", "name", "paper", "results", "figure.width", "figure.format", "figure.style")
_OF_FIGURES = ("x", "colour", "panels", "value", "at", "versus", "colours", "title", "label.x", "label.y")
_BY_COLUMN = ("where.", "names.", "versus.")
_LEAST_WIDTH, _MOST_WIDTH = 1.5, 20.0  # inches
_ROWS = 12  # as many rows of a table are printed
_WIDTH = 110  # of a paragraph


def main(words: list[str]) -> int:
    """Run the command; its exit code, 2 for a user's mistake."""
    return run_command(_report, words, USAGE)


def _report(words: list[str]) -> int:
    """Report on one question, one sweep, or all questions, as the words of the command line say; the exit code."""
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        is_known = key in (*_WORDS, *_OF_FIGURES) or key.startswith(_BY_COLUMN)
        if not is_known or not value or key in given:
            raise UserError(
                f"{word}: there are experiment=NAME, name=NAME, paper=NAME, results=FOLDER, those of figures "
                f"({', '.join(_OF_FIGURES)}, where.COLUMN), figure.width, figure.format and figure.style"
            )
        given[key] = value

    results = Path(given.pop("results", "results"))
    file = _read_print_file(given)
    asked = {key: given.pop(key) for key in [*given] if key not in _WORDS}
    if "paper" in given:
        if len(given) > 1 or asked:
            raise UserError("paper= stands without experiment=, name= and words of figures: its file has them")
        return _report_papers(given["paper"], results, file)
    if asked:
        if [*given] != ["name"]:
            raise UserError(f"{next(iter(asked))}= draws a figure of a sweep: say which by name=NAME alone")
        return _report_sweep(given["name"], asked, results, file)
    experiment = given.get("experiment", "")
    name = given.get("name", experiment)  # of the tables
    if not name:
        return _report_all(results, file)
    if not experiment and name not in list_questions():
        return _report_sweep(name, {}, results, file)
    if experiment and experiment not in list_questions() and (results / experiment).is_dir():
        command = write_command("report", f"name={experiment}", results)
        raise UserError(f"{experiment} is a sweep and no question; its figures: {command}")

    _, failures = _report_question(experiment or name, name, results, file)
    return int(failures > 0)


def _read_request(words: Mapping[str, str]) -> FigureRequest:
    """Read the words of the command line that say how a figure is to be."""
    from bnlab.harness.reporting.any_sweep import FigureRequest

    where: dict[str, Any] = {}
    names = {}
    along, against = "estimator", None
    for key, value in words.items():
        kind, _, column = key.partition(".")
        if kind == "where":
            where[column] = _parse(key, value)
        elif kind == "names":
            names[column] = _parse_one(key, value, dict, "{value: words, ...}")
        elif kind == "versus":
            if against is not None:
                raise UserError(f"{key}={value}: versus stands once, with an estimator or with a value of a setting")
            along = column or along
            against = _parse_one(key, value, (str, int, float), "one value")
    shares = [share for share in words.get("at", "").strip("[]").split(",") if share]
    return FigureRequest(
        value=words.get("value", ""),
        x=words.get("x", ""),
        colour=words.get("colour", ""),
        panels=_parse("panels", words.get("panels", "")),
        at=[_parse_one("at", share, (int, float), "a share of the training, 0 to 1") for share in shares],
        where=where,
        against=against,
        along=along,
        names=names,
        colours=_parse_one("colours", words["colours"], dict, "{value: colour, ...}") if "colours" in words else {},
        title=words.get("title", ""),
        x_label=words.get("label.x", ""),
        y_label=words.get("label.y", ""),
    )


def _parse(key: str, value: str) -> list[Any]:
    """Parse the values of a word, which are YAML, with commas or in brackets where there are several."""
    try:
        values = yaml.safe_load(f"[{value}]")
    except yaml.YAMLError as error:
        raise UserError(f"{key}={value}: is no YAML: {' '.join(str(error).split())}") from error
    is_list = len(values) == 1 and isinstance(values[0], list)
    return values[0] if is_list else values


def _parse_one(key: str, value: str, kind: Any, wanted: str) -> Any:
    """Parse the single value of a word; UserError if it is of another kind."""
    values = _parse(key, value)
    if len(values) != 1 or not isinstance(values[0], kind):
        raise UserError(f"{key}={value}: must be {wanted}")
    return values[0]


def _read_print_file(given: dict[str, str]) -> PrintFile | None:
    """Take the words on files for print out of those that were given; None where there are none."""
    words = {key: given.pop(key) for key in [*given] if key.startswith("figure.")}
    if not words:
        return None
    from bnlab.harness.reporting.drawing import FORMATS, PrintFile

    form = words.get("figure.format", "pdf")
    if form not in FORMATS:
        raise UserError(f"figure.format={form}: must be one of {', '.join(FORMATS)}")
    inches = None
    if "figure.width" in words:
        inches = _parse_width(words["figure.width"])
    style = None
    if "figure.style" in words:
        style = Path(words["figure.style"])
    file = PrintFile(inches, form, style)
    file.read_settings()  # now, before anything is drawn
    return file


def _parse_width(width: str) -> float:
    """Parse the width of a figure; UserError unless it is a number of inches within the limits."""
    try:
        inches = float(width)
    except ValueError:
        inches = math.nan  # which is within no limits
    if not _LEAST_WIDTH <= inches <= _MOST_WIDTH:
        raise UserError(f"figure.width={width}: must be inches, from {_LEAST_WIDTH:g} to {_MOST_WIDTH:g}")
    return inches


def _report_all(results: Path, file: PrintFile | None) -> int:
    """Report on all questions that have results and write their pages; what is left out is named on stderr."""

    # A sweep leaves records, and committed results have tables alone.
    folders = [*results.glob("*/jobs"), *results.glob("*/tables")]
    measured = sorted({folder.parent.name for folder in folders})
    if not measured:
        command = write_command("sweep", "experiment=quickstart", results)
        raise UserError(f"no results in {results}/; run: {command}")
    questions = [name for name in measured if name in list_questions()]
    for name in measured:
        if name not in questions:
            command = write_command("report", f"name={name}", results)
            print(f"{name} has no question; its figures: {command}", file=sys.stderr)
    if not questions:
        return 2

    outcomes: list[Outcome] = []
    failures = 0
    for name in questions:
        try:
            outcome, failed = _report_question(name, name, results, file)
        except UserError as error:
            # A question that has not been measured is no failure.
            if not isinstance(error, NoRows):
                failures += 1
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        outcomes.append(outcome)
        failures += failed
    if not outcomes:
        raise UserError(f"no question can be answered from {results}/")
    write_pages(outcomes, results)
    return 1 if failures else 0


def _report_question(experiment: str, name: str, results: Path, file: PrintFile | None) -> tuple[Outcome, int]:
    """Report on a question by the tables of the sweep with this name; how many figures and claims failed."""
    from bnlab.harness.reporting.outcome import decide_outcome
    from bnlab.harness.reporting.page import write_question

    question = find_question(experiment)
    folder = results / name
    if not question.command:
        question = replace(question, command="\n".join(_list_commands(question, folder)))
    tables = _load_read(question, results, {experiment: name})
    if experiment != name:  # the sweep may have other reports, of its own and of other questions
        folder = folder / experiment
    outcome, failures = _print_and_draw(decide_outcome(question, tables), tables, folder, file)
    _write_page(folder, write_question(outcome, folder))
    return outcome, failures


def _load_read(question: Question, results: Path, names: Mapping[str, str] | None = None) -> dict[str, LoadedTables]:
    """Load the tables of the sweeps that a question reads, as far as there are any; the others are named on stderr.

    Args:
        question: the question.
        results: the folder of results.
        names: of sweeps that have another name there.
    """
    from bnlab.harness.reporting.tables import load

    tables = {}
    missing = []
    for reads in question.list_reads():
        name = (names or {}).get(reads, reads)
        try:
            loaded = load(name, results)
            if loaded["runs"].empty:
                raise NoRows(f"no network of {name} has been measured in {results}/")
            tables[reads] = loaded
        except UserError as error:
            missing.append(error)
    if not tables:
        nothing = f"nothing that it reads has been measured in {results}/"
        raise NoRows(str(missing[0]) if len(missing) == 1 else nothing)
    for reason in missing:
        print(f"{question.name}: {reason}", file=sys.stderr)
    return tables


def _list_commands(question: Question, folder: Path) -> list[str]:
    """List the commands that have made a question's tables; of committed ones those that make them somewhere else."""
    is_committed = folder.resolve().parent == REFERENCE
    commands = [] if is_committed else read_commands(folder)
    if not commands:
        results = Path("results") if is_committed else folder.parent
        sweeps = question.sweeps or (question.name,)
        commands = [write_command("sweep", f"experiment={sweep}", results) for sweep in sweeps]
    return commands


def _print_and_draw(
    outcome: Outcome, tables: Mapping[str, LoadedTables], folder: Path, file: PrintFile | None
) -> tuple[Outcome, int]:
    """Print what the tables say on a question, and draw its figures; how many figures and claims failed."""
    from bnlab.harness.reporting.verdicts import CANNOT_BE_SCORED

    unscored = outcome.frame[outcome.frame["verdict"] == CANNOT_BE_SCORED]
    for row in unscored.to_dict("records"):
        print(f"claim {row['claim']} of {outcome.question.name} cannot be scored: {row['note']}", file=sys.stderr)

    print("\n".join(_describe(outcome)))
    drawn, failed = _draw_figures(outcome.question, tables, folder / "figures", file)
    notes = [note for of_sweep in tables.values() for note in of_sweep.notes]
    outcome = replace(outcome, question=replace(outcome.question, figures=drawn), notes=notes)
    return outcome, len(unscored) + failed


def _report_papers(words: str, results: Path, file: PrintFile | None) -> int:
    """Report on the papers of a list, or on all; the exit code. What has no tables is named on stderr."""
    names = words.split(",") if words != "all" else list_papers()
    papers = [find_paper(name) for name in dict.fromkeys(names)]
    failures = []
    for paper in papers:
        try:
            failures.append(_report_paper(paper, results, file))
        except NoRows as error:
            print(f"{paper.name} is left out: {error}; {_name_committed(paper)}", file=sys.stderr)
    return int(any(failures)) if failures else 2


def _name_committed(paper: Question) -> str:
    """Say where a paper is redrawn with the committed results, which a wheel does not have."""
    page = REFERENCE / "papers" / paper.name / "README.md"
    if page.exists():
        return f"with the committed results it is {page} (results={REFERENCE})"
    return "a clone of the repository has results that it is redrawn from: results=results/reference"


def _report_paper(paper: Question, results: Path, file: PrintFile | None) -> int:
    """Report on a paper by the tables of the sweeps that it reads; how many figures and claims failed."""
    from bnlab.harness.reporting.outcome import decide_outcome
    from bnlab.harness.reporting.page import write_html, write_paper

    folder = results / "papers" / paper.name
    paper = replace(paper, command=write_command("report", f"paper={paper.name}", results))
    tables = _load_read(paper, results)
    outcome, failures = _print_and_draw(decide_outcome(paper, tables), tables, folder, file)
    page = write_paper(outcome, list_questions())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(page, encoding="utf-8")
    _write_page(folder, write_html(paper.name, page, folder))
    return failures


def _write_page(folder: Path, page: str) -> None:
    """Write the page of a folder of results, and print where it is."""
    folder.mkdir(parents=True, exist_ok=True)  # where no figure could be drawn
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    print(path)


def _draw_figures(
    question: Question, tables: Mapping[str, Tables], folder: Path, file: PrintFile | None
) -> tuple[dict[str, Figure], int]:
    """Draw all figures that can be drawn, now with whole captions; count those that failed, and name them on stderr."""
    from bnlab.harness.reporting import drawing

    gc.freeze()  # drawing makes much garbage, and each collection would go through all that is imported, too
    drawn: dict[str, Figure] = {}
    failed = 0
    is_committed = folder.resolve().is_relative_to(REFERENCE)
    print_file = file
    # Committed figures are PNGs alone, others have a PDF beside them.
    if file is None and not is_committed:
        print_file = drawing.PrintFile()
    for key, figure in question.figures.items():
        reads = figure.reads or question.name
        if reads not in tables:
            continue
        try:
            drawn[key] = drawing.write(key, figure, tables[reads], folder, print_file)
        except NoRows as error:  # a figure of estimators that were not swept, for example
            print(f"{error}; it is left out", file=sys.stderr)
        except (Exception, SystemExit) as error:  # the code of a question may raise either
            failed += 1
            print(f"figure {key} of {question.name} cannot be drawn: {where_raised(error)}", file=sys.stderr)
        else:
            print(folder / f"{key}.png")
            if file is not None:
                print(folder / f"{key}.{file.format}")
    return drawn, failed


def _describe(outcome: Outcome) -> Iterator[str]:
    """Describe an outcome: what was measured and its means, or the verdicts on each claim."""
    columns = find_width(sys.stdout) or sys.maxsize
    if outcome.means is None:
        yield f"{outcome.question.name}: {outcome.question.asks}"
        yield from _list_verdicts(outcome, columns)
        yield ""
        return
    if outcome.networks:
        yield textwrap.fill(outcome.networks, min(_WIDTH, columns))
        yield ""
    for name, table in outcome.means.items():
        # Of an asked figure all means are printed, since no page has them.
        rows = len(table) if name in outcome.question.figures else _ROWS
        yield format_table(table.head(rows))
        if len(table) > rows:
            yield f"... {len(table) - rows} more on the page"
        yield ""


def _list_verdicts(outcome: Outcome, columns: int) -> Iterator[str]:
    """Write a question's verdicts in aligned lines, under the sentence of each claim.

    On a narrow terminal what is too long goes on below, between two words: half a number would be read as another one.
    """
    width = max(map(len, outcome.frame["condition"]), default=0)
    number_width = max(map(len, outcome.frame["number"]), default=0)
    for claim, conditions in outcome.list_claims():
        yield from textwrap.wrap(f"  {claim.state()} ({claim.margin.words})", columns, subsequent_indent="  ")
        for row in conditions:
            condition = row["condition"].ljust(width)
            number = row["number"].ljust(number_width)
            verdict = f"n={row['n']}  {row['said']}"
            if 4 + len(condition) + 2 + len(number) + 2 + len(verdict) <= columns:
                yield f"    {condition}  {number}  {verdict}"
            else:
                yield f"    {row['condition']}"
                yield f"      {number}  {verdict}"


def _report_sweep(name: str, asked: Mapping[str, str], results: Path, file: PrintFile | None) -> int:
    """Report on any sweep by the question that is made from its tables, or draw figures of it as words say."""
    from bnlab.harness.reporting.any_sweep import describe_sweep, make_asked
    from bnlab.harness.reporting.page import write_sweep
    from bnlab.harness.reporting.tables import load

    try:
        tables = load(name, results)
        outcome = make_asked(name, tables, _read_request(asked)) if asked else describe_sweep(name, tables)
    except NoRows as error:
        raise UserError(f"{name}: {error}") from error

    folder = results / name
    question = replace(outcome.question, command="\n".join(read_commands(folder)))
    outcome, failed = _print_and_draw(replace(outcome, question=question), {name: tables}, folder, file)
    if not asked:
        _write_page(folder, write_sweep(outcome, folder))
    return int(failed > 0)
