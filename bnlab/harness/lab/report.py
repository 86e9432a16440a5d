"""bnlab report: figures and verdicts of experiments, any sweep, redrawn papers, or trainings that were watched."""

from __future__ import annotations

import gc
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.harness.errors import NoRows, UserError, where_raised
from bnlab.harness.lab.command import print_table, run_command, write_command
from bnlab.harness.lab.registry import REFERENCE, find_experiment, list_papers, list_questions, write_pages
from bnlab.harness.progress import find_width
from bnlab.harness.records import read_commands

# All of these take long to import. Functions import what they need, so that a mistake is answered before that, and
# Ctrl-C in the meantime is caught by `run_command`.
if TYPE_CHECKING:
    from bnlab.harness.lab.papers import Paper
    from bnlab.harness.reporting.drawing import PaperFile
    from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
    from bnlab.harness.reporting.outcome import Outcome
    from bnlab.harness.reporting.tables import LoadedTables

USAGE = """usage: bnlab report [experiment=NAME] [name=NAME] [paper=NAME] [watch=FILE] [results=FOLDER]
                    [figure.width=INCHES] [figure.format=FORMAT] [figure.style=FILE]

experiment=NAME    figures and verdicts of a question, and its page; with name=SWEEP of a sweep under another name, in
                   the folder SWEEP/NAME
name=NAME          figures and a page of any sweep, by what was swept, without a question
paper=NAME         a published paper beside what is found here, by the tables that are there, and its page; several with
                   commas between them, or all
watch=FILE         what your own trainings lost under running averages, beside the map of the question real; several
                   files with commas between them. bnlab.watch writes one: watch.history.to_parquet(FILE)
without either     figures, verdicts and pages of all questions that have results; the committed ones:
                   results=results/reference
figure.width=3.25  of the files for papers beside the PNGs of the page, in inches; figure.format=pdf or svg;
                   figure.style=FILE.mplstyle, with settings of matplotlib's such as font.size: 8

A page is report.html, in the folder of the results, of a paper in papers/NAME there, of histories in watch. Of papers
and without either word there is a README.md beside it, too, and where questions of bnlab's own have results, ANSWERS.md
and HYPOTHESES.md.

The exit code is 1 where a claim or a figure failed and the others are there, and 2 where there is nothing."""
_WORDS = ("experiment", "name", "paper", "watch", "results", "figure.width", "figure.format", "figure.style")
_LEAST_WIDTH, _MOST_WIDTH = 1.5, 20.0  # inches
_MAPPED = "real"  # the question whose map stands beside histories
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
        if key not in _WORDS or not value or key in given:
            raise UserError(
                f"{word}: there are experiment=NAME, name=NAME, paper=NAME, watch=FILE, results=FOLDER, "
                "figure.width=INCHES, figure.format=FORMAT and figure.style=FILE"
            )
        given[key] = value

    results = Path(given.pop("results", "results"))
    file = _read_paper_file(given)
    if "paper" in given:
        if len(given) > 1:
            raise UserError("paper= stands without experiment= and name=: its file names the experiments")
        return _report_papers(given["paper"], results, file)
    if "watch" in given:
        if len(given) > 1:
            raise UserError("watch= stands without experiment=, name= and paper=")
        return _report_watched(given["watch"], results, file)
    experiment = given.get("experiment", "")
    name = given.get("name", experiment)  # of the tables
    if not name:
        return _report_all(results, file)
    if not experiment and name not in list_questions():
        return _report_sweep(name, results, file)
    if experiment and experiment not in list_questions() and (results / experiment).is_dir():
        command = write_command("report", f"name={experiment}", results)
        raise UserError(f"{experiment} is a sweep and no question; its figures: {command}")

    _, failures = _report_question(experiment or name, name, results, file)
    return int(failures > 0)


def _read_paper_file(given: dict[str, str]) -> PaperFile | None:
    """Take the words on files for papers out of those that were given; None where there are none."""
    words = {key: given.pop(key) for key in [*given] if key.startswith("figure.")}
    if not words:
        return None
    from bnlab.harness.reporting.drawing import FORMATS, PaperFile

    form = words.get("figure.format", "pdf")
    if form not in FORMATS:
        raise UserError(f"figure.format={form}: must be one of {', '.join(FORMATS)}")
    inches = None
    if "figure.width" in words:
        inches = _parse_width(words["figure.width"])
    style = None
    if "figure.style" in words:
        style = Path(words["figure.style"])
    file = PaperFile(inches, form, style)
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


def _report_all(results: Path, file: PaperFile | None) -> int:
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


def _report_question(experiment: str, name: str, results: Path, file: PaperFile | None) -> tuple[Outcome, int]:
    """Draw every figure of a question, print the verdicts on its claims, write its page.

    The tables are those of the sweep with this name; NoRows where nothing of it has been measured. Returns the outcome,
    and how many figures and claims failed.
    """
    from bnlab.harness.reporting.page import write_question
    from bnlab.harness.reporting.tables import load

    question = find_experiment(experiment)
    tables = load(name, results)
    if "runs" not in tables or tables["runs"].empty:
        raise NoRows(f"no network of {name} has been measured in {results}/")

    folder = results / name
    if not question.command:
        question = replace(question, command="\n".join(_list_commands(question, folder)))
    if experiment != name:  # the sweep may have other reports, of its own and of other questions
        folder = folder / experiment
    outcome, failures = _decide_and_draw(question, tables, folder, file)
    lines = ["", f"{experiment}: {question.question}", *_describe(outcome), ""]
    print("\n".join(lines))
    _write_page(folder, write_question(outcome, folder))
    return outcome, failures


def _list_commands(question: Experiment, folder: Path) -> list[str]:
    """List the commands that have made a question's tables; of committed ones those that make them somewhere else."""
    is_committed = folder.resolve().parent == REFERENCE
    commands = [] if is_committed else read_commands(folder)
    if not commands:
        results = Path("results") if is_committed else folder.parent
        sweeps = question.sweeps or (question.name,)
        commands = [write_command("sweep", f"experiment={sweep}", results) for sweep in sweeps]
    return commands


def _decide_and_draw(
    question: Experiment, tables: LoadedTables, folder: Path, file: PaperFile | None
) -> tuple[Outcome, int]:
    """Decide the claims of a question and draw its figures; how many of both failed."""
    from bnlab.harness.reporting.outcome import decide_outcome
    from bnlab.harness.reporting.verdicts import CANNOT_BE_SCORED

    outcome = decide_outcome(question, tables)
    unscored = outcome.frame[outcome.frame["verdict"] == CANNOT_BE_SCORED]
    for row in unscored.to_dict("records"):
        print(f"claim {row['claim']} of {question.name} cannot be scored: {row['note']}", file=sys.stderr)

    drawn, failed = _draw_figures(question.name, outcome.experiment.figures, tables, folder / "figures", file)
    outcome = replace(outcome, experiment=replace(outcome.experiment, figures=drawn), notes=tables.notes)
    return outcome, len(unscored) + failed


def _report_papers(words: str, results: Path, file: PaperFile | None) -> int:
    """Report on the papers of a list, or on all; the exit code. What has no tables is named on stderr."""
    from bnlab.harness.lab.papers import read_paper

    names = words.split(",") if words != "all" else list(list_papers())
    papers = [read_paper(name) for name in dict.fromkeys(names)]
    failures = []
    for paper in papers:
        try:
            failures.append(_report_paper(paper, results, file))
        except NoRows as error:
            print(f"{paper.name} is left out: {error}; {_name_committed(paper)}", file=sys.stderr)
    return int(any(failures)) if failures else 2


def _name_committed(paper: Paper) -> str:
    """Say where a paper is redrawn with the committed results, which a wheel does not have."""
    page = REFERENCE / "papers" / paper.name / "README.md"
    if page.exists():
        return f"with the committed results it is {page} (results={REFERENCE})"
    return "a clone of the repository has results that it is redrawn from: results=results/reference"


def _report_paper(paper: Paper, results: Path, file: PaperFile | None) -> int:
    """Draw a paper's figures, print the verdicts on its claims, write its page; how many of both failed."""
    from bnlab.harness.lab.reproduction import make_experiments, select_conditions, write_paper
    from bnlab.harness.reporting.page import write_html
    from bnlab.harness.reporting.tables import load

    name = paper.name
    folder = results / "papers" / name
    lines = ["", f"{name}: {paper.question}"]
    outcomes: list[Outcome] = []
    failures = 0
    for experiment in make_experiments(paper):
        try:
            tables = load(experiment.name, results)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        outcome, failed = _decide_and_draw(experiment, tables, folder, file)
        outcomes.append(select_conditions(paper, outcome))
        lines += _describe(outcomes[-1])
        failures += failed
    if not outcomes:
        raise NoRows(f"nothing that {name} reads has been measured in {results}/")

    page = write_paper(paper, outcomes, write_command("report", f"paper={name}", results))
    print("\n".join([*lines, ""]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(page, encoding="utf-8")
    _write_page(folder, write_html(name, page, folder))
    return failures


def _report_watched(words: str, results: Path, file: PaperFile | None) -> int:
    """Draw what trainings have lost that bnlab.watch has watched, beside the map of `real`; the exit code."""
    from bnlab.harness.reporting.page import render, write_html
    from bnlab.harness.reporting.tables import load
    from bnlab.harness.reporting.watched import declare_figures, read_histories

    paths = [Path(word) for word in dict.fromkeys(words.split(","))]
    histories = read_histories(paths)
    folder = results / "watch"
    figures, failures = _draw_figures("watch", declare_figures(histories), histories, folder / "figures", file)

    maps: dict[str, Figure] = {}
    no_map = ""
    real = results if (results / _MAPPED).is_dir() else REFERENCE
    try:
        tables = load(_MAPPED, real)
    except UserError:
        no_map = f"The map of {_MAPPED} is left out: nothing of it has been measured in {results}/."
        print(no_map, file=sys.stderr)
    else:
        figure = find_experiment(_MAPPED).figures["map"]
        maps, failed = _draw_figures(_MAPPED, {"map": figure}, tables, folder / "figures", file)
        failures += failed
        if not maps:
            no_map = f"The map of {_MAPPED} is left out: it cannot be drawn."

    command = write_command("report", f"watch={words}", results)
    values = {"figures": figures, "map": maps.get("map"), "no_map": no_map, "command": command}
    _write_page(folder, write_html("watch", render("watched.md", **values), folder))
    return int(failures > 0)


def _write_page(folder: Path, page: str) -> None:
    """Write the page of a folder of results, and print where it is."""
    folder.mkdir(parents=True, exist_ok=True)  # where no figure could be drawn
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    print(path)


def _draw_figures(
    name: str, figures: Mapping[str, Figure], tables: Tables, folder: Path, file: PaperFile | None
) -> tuple[dict[str, Figure], int]:
    """Draw all figures that can be drawn, now with whole captions; count those that failed, and name them on stderr."""
    import matplotlib

    # Figures become files alone, for which no display is needed.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from bnlab.harness.reporting import drawing

    gc.freeze()  # drawing makes much garbage, and each collection would go through all that is imported, too
    drawn: dict[str, Figure] = {}
    failed = 0
    is_committed = folder.resolve().is_relative_to(REFERENCE)
    paper_file = file
    # Committed figures are PNGs alone, others have a PDF beside them.
    if file is None and not is_committed:
        paper_file = drawing.PaperFile()
    for key, figure in figures.items():
        try:
            drawn[key] = drawing.write(key, figure, tables, folder, paper_file)
        except NoRows as error:  # a figure of estimators that were not swept, for example
            print(f"{error}; it is left out", file=sys.stderr)
        except (Exception, SystemExit) as error:  # the code of a question may raise either
            # The figure that has failed is still open.
            pyplot.close("all")
            failed += 1
            print(f"figure {key} of {name} cannot be drawn: {where_raised(error)}", file=sys.stderr)
        else:
            print(folder / f"{key}.png")
            if file is not None:
                print(folder / f"{key}.{file.format}")
    return drawn, failed


def _describe(outcome: Outcome) -> Iterator[str]:
    """Write a question's verdicts in aligned lines, under the sentence of each claim.

    On a narrow terminal what is too long goes on below, between two words: half a number would be read as another one.
    """
    columns = find_width(sys.stdout) or sys.maxsize
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


def _report_sweep(name: str, results: Path, file: PaperFile | None) -> int:
    """Print the first rows of a sweep's table, draw its figures and write its page; the exit code."""
    from bnlab.harness.reporting.overview import make_overview
    from bnlab.harness.reporting.page import write_overview
    from bnlab.harness.reporting.tables import load

    try:
        tables = load(name, results)
        overview = make_overview(tables, tables.own)
    except NoRows as error:
        raise UserError(f"{name}: {error}") from error

    print(textwrap.fill(overview.networks, min(_WIDTH, find_width(sys.stdout) or _WIDTH)))
    print()
    for table in (overview.table, *overview.own.values()):
        if table.empty:  # of a sweep with own measurements alone
            continue
        print_table(table.head(_ROWS))
        more = len(table) - _ROWS
        if more > 0:
            print(f"... {more} more on the page")
        print()

    folder = results / name
    drawn, failed = _draw_figures(name, overview.figures, tables, folder / "figures", file)
    page = write_overview(replace(overview, figures=drawn, notes=tables.notes), folder, read_commands(folder))
    _write_page(folder, page)
    return 1 if failed else 0
