"""bnlab report: figures and verdicts, of one experiment or of all that have results."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command import run_command

if TYPE_CHECKING:
    from bnlab.harness.reporting.answer import Answer

USAGE = """usage: bnlab report [experiment=NAME [name=NAME]] [results=FOLDER]

Draw the figures of an experiment from its tables, and print the verdicts on its claims. Without an experiment: of all
that have results; writes ANSWERS.md, report.html, a README.md for each. The committed: results=results/reference."""
REFERENCE, FILES = (Path(__file__).parents[1] / folder for folder in ("results/reference", "conf/experiment"))


def main() -> int:
    """Figures, and verdicts in aligned lines; exit 2 for a user's mistake."""
    return run_command(_report, USAGE)


def _report(words: list[str]) -> int:
    from bnlab.harness.errors import UserError
    from bnlab.harness.reporting.answer import READING
    from experiments.catalogue import list_questions

    given = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = [word for word in words if word.partition("=")[0] not in ("experiment", "name", "results")]
    if unknown or len(given) < len(words) or ("name" in given and "experiment" not in given):
        raise UserError(f"{(unknown or words)[0]}: there are experiment=NAME, beside it name=NAME, and results=FOLDER")
    results, answers = Path(given.get("results", "results")), []
    if "experiment" in given:
        _report_one(given["experiment"], given.get("name", given["experiment"]), results)
    for name in () if "experiment" in given else list_questions():
        if any((results / name / kind).is_dir() for kind in ("parts", "tables")):
            try:
                answers.append(_report_one(name, name, results))
            except UserError as error:  # as of half a sweep
                print(f"{name} is left out: {error}", file=sys.stderr)
    if not answers and "experiment" not in given:
        raise UserError(f"no results in {results}/; run: bnlab sweep experiment=quickstart")
    others = {path.parent.name for path in results.glob("*/parts")} - {answer.experiment.name for answer in answers}
    if others and "experiment" not in given:
        print(f"left out: {', '.join(sorted(others))}; of one: experiment=QUESTION name=NAME", file=sys.stderr)
    print(textwrap.fill(READING.replace("*", ""), 110))
    if answers:
        _write_pages(answers, results)
    return 0


def _report_one(experiment: str, name: str, results: Path) -> Answer:
    """Draw every figure of an experiment, and print the verdicts on its claims."""
    import matplotlib

    matplotlib.use("Agg")
    from bnlab.harness.errors import NoRows
    from bnlab.harness.reporting import drawing, style
    from bnlab.harness.reporting.answer import compose_answer
    from bnlab.harness.reporting.tables import load
    from experiments.catalogue import find_experiment

    question, tables = find_experiment(experiment), load(name, results)
    commands = question.command or "\n".join(_list_commands(experiment, results))
    answer = _call(f"claims of {experiment}", compose_answer, replace(question, command=commands), tables)
    with style.paper():
        for key, figure in question.figures.items():
            try:
                drawn = _call(f"figure {key} of {experiment}", drawing.draw, key, figure, tables)
            except NoRows as error:  # as where it is of other estimators than were swept
                print(f"{error}; it is left out", file=sys.stderr)
                continue
            print(drawing.save(drawn, results / name / "figures", key, pdf=results.resolve() != REFERENCE))
    print("\n".join(["", f"{experiment}: {question.question}", *_describe(answer), ""]))
    return answer


def _list_commands(experiment: str, results: Path) -> Iterator[str]:
    """A sweep for each file that writes these tables: `drift`, `drift_terms`."""
    words = [f"results={results}"] * (str(results) != "results" and results.resolve() != REFERENCE)
    for path in sorted(FILES.glob("*.yaml")):
        if f"\nname: {experiment}\n" in path.read_text(encoding="utf-8"):
            yield shlex.join(["bnlab", "sweep", f"experiment={path.stem}", *words])


def _call(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; an error in a question's code becomes a UserError with its line."""
    from bnlab.harness.errors import UserError, where_raised

    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        below = error.__traceback__ and error.__traceback__.tb_next  # without the line above
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        raise UserError(f"{what}{notes}: {where_raised(error.with_traceback(below))}") from error


def _describe(answer: Answer) -> list[str]:
    """An experiment's verdicts in aligned lines, under the sentence of each claim."""
    rows = [row for _, conditions in answer.list_claims() for row in conditions]
    condition, number = (max((len(row[key]) for row in rows), default=0) for key in ("condition", "number"))
    lines = []
    for claim, conditions in answer.list_claims():
        lines.append(f"  {claim.text} ({claim.rule.margin})")
        for row in conditions:
            lines.append(f"    {row['condition']:{condition}}  {row['number']:{number}}  n={row['n']}  {row['said']}")
    return lines


def _write_pages(answers: list[Answer], results: Path) -> None:
    """ANSWERS.md, the README.md of each experiment, and report.html."""
    from bnlab.harness.reporting.page import write_experiment, write_html, write_markdown
    from experiments.catalogue import read_catalogue
    from experiments.holdout import describe_added_seeds

    names = [(answer.experiment.name, figure) for answer in answers for figure in answer.experiment.figures]
    figures = {(name, figure): results / name / "figures" / f"{figure}.png" for name, figure in names}
    catalogue = read_catalogue()
    added_seeds = describe_added_seeds(answers, results) if results.resolve() == REFERENCE else None
    pages = {f"{answer.experiment.name}/README.md": write_experiment(answer) for answer in answers}
    pages["ANSWERS.md"] = write_markdown(catalogue, answers, added_seeds)
    pages["report.html"] = write_html(catalogue, answers, figures, added_seeds)
    for name, page in pages.items():
        (results / name).write_text(page, encoding="utf-8")
        print(results / name)


if __name__ == "__main__":
    sys.exit(main())
