"""python -m experiments.reference [FOLDER ...]: add the tables of other folders to results/reference, and shorten all.

A long experiment is swept on several machines, or in several parts: each part's tables are added when it ends. Of the
measured values those stay that the experiment's question names, to seven digits; keys, places and settings stay all.
"""

import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bnlab.harness.errors import UserError
from bnlab.harness.lab.command import run_command
from bnlab.harness.lab.registry import REFERENCE, find_question, list_measurements, list_questions
from bnlab.harness.schema import Table, is_open, read_frame, read_key, read_schema, write_frame


def main() -> int:
    """Add the tables of the folders on the command line, and shorten all tables."""
    return run_command(_update, sys.argv[1:], usage=str(__doc__))


def _update(folders: list[str]) -> int:
    # All folders are read before anything is written, so that a wrong name changes nothing.
    parts = {folder: _list_tables(Path(folder)) for folder in folders}
    for folder, paths in parts.items():
        if not paths:
            raise UserError(f"{folder}: has no tables of a question; name what a sweep had as results=")
    for paths in parts.values():
        for path in paths:
            # A table lies at <experiment>/tables/<table>.parquet, in any folder of results.
            add_rows(path, REFERENCE / path.parts[-3] / "tables" / path.name)
    shorten_all()
    return 0


def _list_tables(folder: Path) -> list[Path]:
    """List the tables of all questions in a folder of results."""
    paths: list[Path] = []
    for name in list_questions():
        paths += sorted((folder / name / "tables").glob("*.parquet"))
    return paths


def add_rows(path: Path, target: Path) -> None:
    """Add the rows of a table's file to another file; rows of the same key take the place of those that are there."""
    schema = read_schema(path)
    rows = read_frame(path)
    if target.exists():
        before = read_frame(target)

        if not is_open(schema):
            rows = rows[list(before)]  # of a table that was shortened, the columns that are left
        key = read_key(schema)
        both = pd.concat([before, rows], ignore_index=True)
        # The new rows come last, so that they are the ones that are kept.
        rows = both.drop_duplicates(key, keep="last").sort_values(key)

    # Open tables have a column for each setting, which their schema does not list.
    if not is_open(schema):
        fields = [schema.field(column) for column in rows]
        schema = pa.schema(fields, schema.metadata)
    write_frame(target, rows, schema)


def shorten_all() -> None:
    """Write each table without columns and digits that no figure and no claim reads; remove those without rows."""
    measured = {each.name: each.table for each in list_measurements().values()}
    for path in sorted(REFERENCE.glob("*/tables/*.parquet")):
        frame = read_frame(path)
        if frame.empty:
            path.unlink()
        # The table `runs` is of no measurement, and keeps its settings.
        elif path.stem in measured:
            _shorten(path, frame, measured[path.stem])


def _shorten(path: Path, frame: pd.DataFrame, table: Table) -> None:
    """Leave out measured values that the question does not read, and give the others seven digits."""
    # These say where a value was measured. Rounded, a momentum would no longer be found by its value.
    key_columns = [*table.key, "epoch"]
    read = find_question(path.parts[-3]).columns
    measured = [str(column) for column in frame if column not in key_columns and frame[column].dtype == "float64"]
    left_out = [column for column in measured if column not in read]
    left_out += [str(column) for column in frame if column not in table.columns]  # which are no longer measured

    shortened = frame.drop(columns=left_out)
    for column in measured:
        if column in shortened:
            # float32 keeps seven digits; the column stays float64.
            shortened[column] = frame[column].astype("float32").astype("float64")
    schema = table.schema
    kept = [schema.field(column) for column in shortened]
    write_frame(path, shortened, pa.schema(kept, schema.metadata))


if __name__ == "__main__":
    sys.exit(main())
