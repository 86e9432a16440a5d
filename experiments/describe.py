"""python -m experiments.describe: write the pages that are made from the code.

results/README.md says what the columns of all tables mean, conf/help.txt is what `bnlab sweep --help` prints, and
results/reference/README.md lists the experiments with what they take.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.training_runner import format_seconds
from bnlab.harness.help import write_help
from bnlab.harness.lab.registry import CONF, REFERENCE, find_question, list_measurements, list_questions
from bnlab.harness.setting_columns import describe_runs

README = Path(__file__).parents[1] / "results" / "README.md"
HELP = CONF / "help.txt"
EXPERIMENTS = REFERENCE / "README.md"
_FIRST = """\
# Tables

A sweep writes `results/<experiment>/tables/<table>.parquet`; `bnlab.harness.load("<experiment>")` gives all of them.
The columns in bold are the key: there is one row for each of their combinations. Types: text, int, real (float64),
bool. Null (NaN) means that a column has no meaning in a row, or that an earlier version wrote it. Shares, accuracies
and errors are fractions from 0 to 1. `runs`, `gaps` and `evaluations` are measured unless `measurements` says
otherwise, the others only where it names them. Files carry key and meanings with them, as metadata. `reference/` has
the tables and figures of one run of each experiment; of these only the columns that its question reads, with seven
digits (`python -m experiments.reference` leaves out the others). `begun/` has rows of experiments that are not done.
`python -m experiments.describe` writes this page.
"""
_FIRST_OF_EXPERIMENTS = """\
# Experiments

Each page has an experiment's claims with their verdicts, its figures, and the commands that run it again.
[ANSWERS.md](ANSWERS.md) says what follows from them, and [HYPOTHESES.md](HYPOTHESES.md) which hypotheses hold. In the
folder `papers`, numbers that papers print stand beside ours. A folder has the layout of your own results:
`bnlab.harness.load("momentum", "results/reference")` reads its tables, `bnlab report experiment=momentum
results=results/reference` draws its figures again, and `bnlab report paper=all results=results/reference` those of the
papers. `make results` trains the networks again.

*Training* is what the networks of the tables took to train, one after the other, on the devices that each page names;
measuring them comes on top. `dry_run=true` says what a sweep takes on your machine.
"""
_TYPES = {"string": "text", "int64": "int", "double": "real", "bool": "bool"}


def main() -> int:
    """Write the pages."""
    README.write_text(describe_tables(), encoding="utf-8")
    HELP.write_text(describe_sweep(), encoding="utf-8")
    EXPERIMENTS.write_text(describe_experiments(), encoding="utf-8")
    return 0


def describe_tables() -> str:
    """Write the page in Markdown: `runs`, then the table of each measurement."""
    known = {each.name: each.table for each in list_measurements().values()}
    names = dict.fromkeys([*Config().measurements, *sorted(known)])  # those that are usual first
    tables = {"runs": describe_runs()}
    for name in names:
        tables[name] = known[name]

    sections = [_FIRST.rstrip()]
    for name, table in tables.items():
        lines = [f"## {name}", "", table.about, "", "| column | type | meaning |", "|---|---|---|"]
        for column, each in table.columns.items():
            shown = f"**{column}**" if column in table.key else column
            lines.append(f"| {shown} | {_TYPES[str(each.type)]} | {each.meaning} |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def describe_sweep() -> str:
    """Write what `bnlab sweep --help` prints."""
    files: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        files.setdefault(path.parent.name, []).append(path.stem)
    return write_help(files)


def describe_experiments() -> str:
    """Write the list of the committed experiments: what each asks, its networks, and how long they trained."""
    rows = "\n".join(_describe_each())
    table = f"| experiment | what it asks | networks | training |\n|---|---|--:|--:|\n{rows}"
    return f"{_FIRST_OF_EXPERIMENTS}\n{table}\n"


def _describe_each() -> Iterator[str]:
    for name in list_questions():
        if not (REFERENCE / name).is_dir():
            continue
        runs = pd.read_parquet(REFERENCE / name / "tables" / "runs.parquet")
        seconds = runs["train_seconds"].sum() if "train_seconds" in runs else 0.0
        # Some networks were never trained, where it does not matter what their weights are.
        training = format_seconds(seconds) if seconds else ""
        yield f"| [{name}]({name}/README.md) | {find_question(name).asks} | {len(runs)} | {training} |"


if __name__ == "__main__":
    sys.exit(main())
