"""python -m experiments.describe: write the pages that are made from the code.

results/README.md says what the columns of all tables mean, conf/help.txt is what `bnlab sweep --help` prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.help import write_help
from bnlab.harness.lab.registry import CONF, list_measurements
from bnlab.harness.setting_columns import describe_runs

README = Path(__file__).parents[1] / "results" / "README.md"
HELP = CONF / "help.txt"
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
_TYPES = {"string": "text", "int64": "int", "double": "real", "bool": "bool"}


def main() -> int:
    """Write the pages."""
    README.write_text(describe_tables(), encoding="utf-8")
    HELP.write_text(describe_sweep(), encoding="utf-8")
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


if __name__ == "__main__":
    sys.exit(main())
