"""python -m experiments.answers: what the tables say on the claims of every experiment that has results."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

from experiments.command import run_command
from experiments.places import REFERENCE, answer_all

if TYPE_CHECKING:
    from bnlab.harness.reporting.answer import Answer

USAGE = """usage: python -m experiments.answers [experiment=NAME [name=NAME]] [results=FOLDER]

What the tables say on the claims of every experiment that has results, or of one. Without words the reference results
are read, and results/reference/ANSWERS.md is written; results=results for your own."""


def main() -> int:
    """Verdicts in aligned lines; exit 2 for a user's mistake."""
    return run_command(_print_all, USAGE)


def _print_all(words: list[str]) -> int:
    from bnlab.harness.reporting.answer import READING

    answers = [answer for _, answer in answer_all(words)]
    for answer in answers:
        name, question = answer.experiment.name, answer.experiment.question
        print("\n".join([f"{name}: {question}", *describe(answer), ""]))
    print(wrap(READING))
    if not words:
        write_answers(answers)
        print(f"\n{REFERENCE}/ANSWERS.md")
    return 0


def write_answers(answers: list[Answer]) -> None:
    """ANSWERS.md beside the reference tables."""
    from bnlab.files import write_whole
    from bnlab.harness.reporting.page import write_markdown
    from experiments.catalogue import CATALOGUE

    page = write_markdown(CATALOGUE, answers)
    write_whole(REFERENCE / "ANSWERS.md", lambda path: path.write_text(page, encoding="utf-8"))


def describe(answer: Answer) -> list[str]:
    """An experiment's verdicts in aligned lines, under the sentence of each claim."""
    rows = [row for _, conditions in answer.claims for row in conditions]
    widths = [max((len(row[key]) for row in rows), default=0) for key in ("condition", "number")]
    lines = [wrap(told, "  ") for told in (answer.images, answer.changes) if told]
    for claim, conditions in answer.claims:
        lines.append(f"  {claim.text} ({claim.rule.unit}: {claim.rule})")
        for row in conditions:
            condition, number = row["condition"].ljust(widths[0]), row["number"].ljust(widths[1])
            lines.append(f"    {condition}  {number}  n={row['n']}  {row['verdict']}")
    return lines


def wrap(text: str, indent: str = "") -> str:
    """In lines that a terminal shows whole."""
    return textwrap.fill(text, 110, initial_indent=indent, subsequent_indent=indent)


if __name__ == "__main__":
    sys.exit(main())
