"""python -m experiments.answers: what the tables say on the claims of every experiment that has results."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import exit_code

if TYPE_CHECKING:
    import pandas as pd

    from bnlab.harness.reporting.experiment import Experiment

USAGE = "usage: python -m experiments.answers [experiment=NAME] [results=FOLDER]"
READING = (
    "mean over seeds [95% interval, of each line by itself]; verdict by one-sided t tests at 5%, with Holm's "
    "correction over the lines of a claim"
)


def main() -> int:
    """Verdicts in aligned lines; exit 2 for a user's mistake."""
    return exit_code(_answers)


def _answers(words: list[str]) -> int:
    from bnlab.harness.errors import UserError
    from experiments.compose import named
    from experiments.explain import choices

    if {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    one = any(word.startswith("experiment=") for word in words)
    chosen = [words] if one else [[f"experiment={name}", *words] for name in choices("experiment")]
    places = [named(some, USAGE) for some in chosen]
    there = [place for place in places if one or (Path(place[2]) / place[1] / "parts").is_dir()]
    if not there:
        raise UserError(f"no results in {places[0][2]}/; run: python -m experiments.sweep experiment=quickstart")
    for place in there:
        _print_answers(*place)
    print(READING)
    return 0


def _print_answers(experiment: str, name: str, results: str) -> None:
    from bnlab.harness import load
    from bnlab.harness.reporting.experiment import answers
    from experiments.questions import find_experiment, own_code

    question = find_experiment(experiment)
    tables = load(name, results)
    with own_code(f"answers of {experiment}", Path(results) / name, experiment, results):
        lines = describe(question, answers(question, tables))
    print("\n".join([f"{experiment}: {question.question}", *lines, ""]))


def describe(experiment: Experiment, found: pd.DataFrame) -> list[str]:
    """The frame `answers(experiment, tables)` in aligned lines, under the sentence of each claim."""
    numbers = [_number(*row) for row in zip(found["mean"], found["low"], found["high"], found["n"], strict=True)]
    cells = found.assign(numbers=numbers)
    widths = [cells[column].str.len().max() for column in ("condition", "numbers")]
    lines = []
    for claim in experiment.claims:
        lines.append(f"  {claim.text} ({claim.unit}: {claim.rule})")
        for row in cells[cells["claim"] == claim.id].to_dict("records"):
            condition, number = row["condition"].ljust(widths[0]), row["numbers"].ljust(widths[1])
            lines.append(f"    {condition}  {number}  n={row['n']}  {row['verdict']}")
    return lines


def _number(mean: float, low: float, high: float, n: int) -> str:
    """Mean and interval to two digits of the interval's half; nothing where there are none."""
    if n < 2:
        return f"{mean:.3g}" if n else ""
    half = (high - low) / 2
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if 0 < half < math.inf else 3
    mean, low, high = (round(value, digits) + 0.0 for value in (mean, low, high))  # no -0.0
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
