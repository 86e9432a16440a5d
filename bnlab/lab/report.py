"""bnlab report: figures and verdicts, of one experiment or of all that have results."""

from __future__ import annotations

import gc
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.lab.command import run_command
from bnlab.lab.folders import REFERENCE

if TYPE_CHECKING:
    from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
    from bnlab.harness.reporting.outcome import Outcome
    from bnlab.harness.reporting.overview import Overview

USAGE = """usage: bnlab report [experiment=NAME] [name=NAME] [results=FOLDER]

experiment=NAME    figures and verdicts of a question (with name=NAME, of a sweep under another name)
name=NAME          figures and a page of any sweep, by what was swept, without a question
without either     figures and verdicts of all questions that have results; writes ANSWERS.md, HYPOTHESES.md,
                   report.html and a README.md for each; the committed ones: results=results/reference

The exit code is 1 where a claim or a figure failed and the others are there, and 2 where there is nothing."""
_ROWS = 12  # as many rows of a table are printed


def main(words: list[str]) -> int:
    """Run the command; its exit code, 2 for a user's mistake."""
    return run_command(_report, words, USAGE)


def _report(words: list[str]) -> int:
    """Report on one question, one sweep, or all questions, as the words of the command line say; the exit code."""
    from bnlab.harness.errors import UserError
    from bnlab.lab.catalogue import list_questions

    given = _read_settings(words)
    results = Path(given.get("results", "results"))
    experiment = given.get("experiment", "")
    name = given.get("name", experiment)  # of the tables
    if not name:
        return _report_all(results)

    if experiment:
        is_sweep = experiment not in list_questions() and (results / experiment).is_dir()
        if is_sweep:
            command = _write_command("report", f"name={experiment}", results)
            raise UserError(f"{experiment} is a sweep and no question; its figures: {command}")
        return _report_questions({experiment: name}, results)

    if name in list_questions():
        return _report_questions({name: name}, results)
    return _report_sweep(name, results)


def _read_settings(words: list[str]) -> dict[str, str]:
    """Read the words of the command line; UserError for one that is no setting, or a setting that was given before."""
    from bnlab.harness.errors import UserError

    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        is_known = key in ("experiment", "name", "results")
        if not (is_known and equals) or key in given:
            raise UserError(f"{word}: there are experiment=NAME, name=NAME and results=FOLDER")
        given[key] = value
    return given


def _report_all(results: Path) -> int:
    """Report on all questions that have results, write their pages, and name the commands that draw other sweeps."""
    from bnlab.harness.errors import UserError
    from bnlab.lab.catalogue import list_questions

    folders = [*results.glob("*/requests"), *results.glob("*/tables")]
    measured = sorted({folder.parent.name for folder in folders})
    questions = [name for name in list_questions() if name in measured]
    others = [name for name in measured if name not in questions]
    if not measured:
        raise UserError(f"no results in {results}/; run: bnlab sweep experiment=quickstart")
    for name in others:
        command = _write_command("report", f"name={name}", results)
        print(f"{name} has no question; its figures: {command}", file=sys.stderr)
    if not questions:
        return 2
    return _report_questions({name: name for name in questions}, results, are_all=True)


def _report_questions(names: Mapping[str, str], results: Path, are_all: bool = False) -> int:
    """Report on questions.

    Args:
        names: name of a question → name of the sweep that has its tables.
        results: the folder of all results.
        are_all: whether these are all questions with results: those that cannot be reported on are then named and left
            out, and pages are written.

    Returns:
        The exit code.
    """
    from bnlab.harness.errors import NoRows, UserError
    from bnlab.harness.reporting.outcome import READING
    from bnlab.lab.catalogue import write_pages

    outcomes: list[Outcome] = []
    failures = 0
    for experiment, name in names.items():
        try:
            outcome, failed = _report_one(experiment, name, results)
        except UserError as error:
            if not are_all:
                raise
            if not isinstance(error, NoRows):
                failures += 1
            print(f"{experiment} is left out: {error}", file=sys.stderr)
            continue
        outcomes.append(outcome)
        failures += failed
    if not outcomes:
        raise UserError(f"no question can be answered from {results}/")
    print(textwrap.fill(READING.replace("*", ""), 110))
    if are_all:
        write_pages(outcomes, results)
    return 1 if failures else 0


def _report_one(experiment: str, name: str, results: Path) -> tuple[Outcome, int]:
    """Draw every figure of a question, and print the verdicts on its claims.

    Args:
        experiment: the question.
        name: the sweep that has its tables.
        results: the folder of all results.

    Returns:
        The outcome, and how many claims and figures failed.

    Raises:
        NoRows: nothing of it has been measured.
    """
    from bnlab.harness.errors import NoRows
    from bnlab.harness.reporting.outcome import find_outcome
    from bnlab.harness.reporting.tables import load
    from bnlab.lab.catalogue import find_experiment

    question = find_experiment(experiment)
    tables = load(name, results)
    if "runs" not in tables or tables["runs"].empty:
        raise NoRows(f"no network of {name} has been measured in {results}/")

    if not question.command:
        question = replace(question, command="\n".join(_list_commands(question, results)))
    outcome = find_outcome(question, tables)
    unscored = outcome.list_unscored()
    for claim, reason in unscored.items():
        print(f"claim {claim} of {experiment} cannot be scored: {reason}", file=sys.stderr)

    figures = outcome.experiment.figures
    _, drawn, failed = _draw_figures(experiment, figures, tables, results / name / "figures")
    outcome = replace(outcome, experiment=replace(outcome.experiment, figures=drawn))
    lines = ["", f"{experiment}: {question.question}", *_describe(outcome), ""]
    print("\n".join(lines))
    return outcome, len(unscored) + failed


def _draw_figures(
    name: str, figures: Mapping[str, Figure], tables: Tables, folder: Path
) -> tuple[dict[str, Path], dict[str, Figure], int]:
    """Draw all figures that can be drawn; name the others on stderr.

    Args:
        name: the question or sweep, for messages.
        figures: by name.
        tables: the tables that they are drawn from.
        folder: where their files are written.

    Returns:
        The PNGs by the figures' names; the figures with their whole captions; and how many figures failed. One without
        rows is left out and has not failed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from bnlab.harness.errors import NoRows, where_raised
    from bnlab.harness.reporting import drawing

    gc.freeze()  # drawing makes much garbage, and each collection would go through all that is imported, too
    paths: dict[str, Path] = {}
    completed: dict[str, Figure] = {}
    failed = 0
    pdf = not folder.resolve().is_relative_to(REFERENCE)
    for key, figure in figures.items():
        try:
            whole = drawing.complete(key, figure, tables)
            path = drawing.write(key, whole, tables, folder, pdf=pdf)
        except NoRows as error:  # a figure of estimators that were not swept, for example
            print(f"{error}; it is left out", file=sys.stderr)
            continue
        except (Exception, SystemExit) as error:  # the code of a question may raise either
            pyplot.close("all")
            failed += 1
            print(f"figure {key} of {name} cannot be drawn: {where_raised(error)}", file=sys.stderr)
            continue
        completed[key] = whole
        paths[key] = path
        print(path)
    return paths, completed, failed


def _report_sweep(name: str, results: Path) -> int:
    """Print the first rows of a sweep's table, draw its figures and write its page; the exit code."""
    from bnlab.harness.errors import NoRows, UserError
    from bnlab.harness.reporting.overview import make_overview
    from bnlab.harness.reporting.page import write_overview
    from bnlab.harness.reporting.tables import load

    try:
        tables = load(name, results)
        overview = make_overview(tables)
    except NoRows as error:
        raise UserError(f"{name}: {error}") from error
    print("\n".join(_summarize(overview)))

    folder = results / name
    paths, drawn, failed = _draw_figures(name, overview.figures, tables, folder / "figures")
    page = write_overview(replace(overview, figures=drawn), paths, folder, _find_command(folder))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    print(path)
    return 1 if failed else 0


def _summarize(overview: Overview) -> Iterator[str]:
    """Write lines on what was swept, then the first rows of the table."""
    for note in overview.notes:
        yield textwrap.fill(note, 110)
    for words, values in overview.swept.items():
        yield f"  {words}: {values}"
    yield ""
    yield overview.table.head(_ROWS).to_string(index=False)
    more = len(overview.table) - _ROWS
    if more > 0:
        yield f"... {more} more on the page"
    yield ""


def _find_command(folder: Path) -> str:
    """Find the command of the last sweep in a folder; empty where it was not kept."""
    path = folder / "command.txt"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _write_command(command: str, word: str, results: Path) -> str:
    """Write a bnlab command as it is typed, with one word and, unless it is the default, the folder of results."""
    words = ["bnlab", command, word]
    if str(results) != "results":
        words.append(f"results={results}")
    return shlex.join(words)


def _list_commands(question: Experiment, results: Path) -> Iterator[str]:
    """List the commands that measure a question; for the committed results, with a reader's own folder."""
    folder = Path("results") if results.resolve() == REFERENCE else results
    for sweep in question.sweeps or (question.name,):
        yield _write_command("sweep", f"experiment={sweep}", folder)


def _describe(outcome: Outcome) -> list[str]:
    """Write a question's verdicts in aligned lines, under the sentence of each claim."""
    claims = outcome.list_claims()
    width = 0
    number_width = 0
    for _, conditions in claims:
        for row in conditions:
            width = max(width, len(row["condition"]))
            number_width = max(number_width, len(row["number"]))

    lines = []
    for claim, conditions in claims:
        lines.append(f"  {claim.text} ({claim.margin.words})")
        for row in conditions:
            condition = row["condition"].ljust(width)
            number = row["number"].ljust(number_width)
            lines.append(f"    {condition}  {number}  n={row['n']}  {row['said']}")
    return lines
