"""Tidy tables of a sweep, put together from the records of its networks when they are read.

    results/<name>/jobs/                   the records, see `bnlab.harness.records`
    results/<name>/tables/<table>.parquet  one row for each key, as a sweep leaves them for other programs
    results/<name>/tables/records.json     the records whose rows these files hold: read while these are the same

Committed results have the tables alone.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
from filelock import FileLock
from pyarrow import compute

from bnlab.common.files import Unreadable, quarantine, write_text
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.records import (
    Chosen,
    choose_parts,
    digest_records,
    locate_rows,
    locate_summary,
    read_records,
    read_summary,
)
from bnlab.harness.run_table import FIXED, RUNS
from bnlab.harness.schema import (
    ROW_KEY,
    conform,
    leave_out_empty,
    read_frame,
    read_key,
    read_meanings,
    read_rows,
    read_schema,
    write_frame,
)

_FOUND = ["run", ROW_KEY, "step"]  # by which rows are found
_LISTINGS = 3  # of a folder in which files vanish, because another sweep puts them together


@dataclass(frozen=True)
class OwnTable:
    """A table of a user's own measurement.

    Attributes:
        key: columns in which no two rows agree.
        numbers: its other columns that hold numbers or truth values, with what they mean.
    """

    key: Sequence[str]
    numbers: Mapping[str, str]


class LoadedTables(dict[str, pd.DataFrame]):
    """The tables of a sweep that have been measured, by name.

    Attributes:
        notes: sentences on rows that are left out.
        own: those among them that measurements of the user's own have measured.
    """

    def __init__(
        self, tables: Mapping[str, pd.DataFrame], notes: Sequence[str] = (), own: Mapping[str, OwnTable] | None = None
    ) -> None:
        super().__init__(tables)
        self.notes = list(notes)
        self.own = dict(own or {})

    def __missing__(self, name: str) -> pd.DataFrame:
        raise NoRows(f"the table {name} has not been measured; there are {', '.join(self)}")


def load(name: str, results: str | Path = "results") -> LoadedTables:
    """The tables of a sweep, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `load("momentum", "results/reference")` has the committed ones.
    Rows of an estimator stand side by side only where the same code has measured them, on the same images and as many:
    those that were measured last count. What is left out is said on stderr, with the command that measures it again.

    Raises:
        UserError: nothing has been measured under this name.

    >>> tables = load("quickstart", "results/reference")
    >>> sorted(tables)
    ['evaluations', 'gaps', 'runs']
    >>> sorted(tables["runs"]["batch_size"].unique().tolist())
    [4, 32, 256]
    """
    tables = read_tables(name, results)
    for note in tables.notes:
        print(note, file=sys.stderr)
    return tables


def read_tables(name: str, results: str | Path = "results") -> LoadedTables:
    """Read the tables as `load` does, which also prints their notes."""
    folder = Path(results) / name
    if (folder / "jobs").is_dir():
        return _read_current(folder) or _put_together(folder).tables
    if (folder / "tables").is_dir():
        paths = sorted((folder / "tables").glob("*.parquet"))
        return LoadedTables({path.stem: read_frame(path) for path in paths})
    where = [] if str(results) == "results" else [f"results={results}"]
    command = shlex.join(["bnlab", "sweep", f"name={name}", *where])
    raise UserError(
        f"no results for {name!r} in {results}/; run: {command} with what is to be swept, or with experiment={name} "
        "where conf/experiment/ has it"
    )


def write_tables(folder: Path) -> LoadedTables:
    """Put every table of a sweep's folder together and write it, unless that was done; safe while others measure."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        current = _read_current(folder)
        if current is not None:
            return current

        state = locate_summary(folder)
        state.unlink(missing_ok=True)  # until it comes back, nobody trusts files of which some are newer
        records = digest_records(folder)  # first: a record that is written in the meantime is not among them
        together = _put_together(folder)
        tables = together.tables
        for name, frame in tables.items():
            write_frame(folder / "tables" / f"{name}.parquet", frame, together.schemas[name])
        # Without this file the tables are not trusted: what is missing is looked for again at the next reading.
        if together.is_whole:
            own = {name: asdict(each) for name, each in tables.own.items()}
            rows = {name: len(frame) for name, frame in tables.items()}
            written = {"records": records, "rows": rows, "notes": tables.notes, "own": own}
            write_text(state, json.dumps(written))
    return tables


def _read_current(folder: Path) -> LoadedTables | None:
    """Read the tables that were written; None if they are of other records, or a file fails."""
    summary = read_summary(folder)
    if summary is None:
        return None
    try:
        frames = {name: read_frame(folder / "tables" / f"{name}.parquet") for name in summary["rows"]}
    except Unreadable:
        return None
    own = {name: OwnTable(**each) for name, each in summary["own"].items()}
    return LoadedTables(frames, summary["notes"], own)


@dataclass(frozen=True)
class _Together:
    """What `_put_together` returns.

    Attributes:
        tables: all of them.
        schemas: of the tables, by name.
        is_whole: whether all rows that were asked for were there.
    """

    tables: LoadedTables
    schemas: dict[str, pa.Schema]
    is_whole: bool


def _put_together(folder: Path) -> _Together:
    """Put all tables together. Files that cannot be read are named and set aside."""
    records = read_records(folder)
    if not records:
        return _Together(LoadedTables({}), {}, is_whole=False)

    runs = pd.DataFrame([record.row for record in records])
    schemas = {"runs": _choose_columns(runs)}
    frames = {"runs": _finish(runs, schemas["runs"])}

    chosen, notes = choose_parts(records)
    by_table: dict[str, list[Chosen]] = {}
    for each in chosen:
        by_table.setdefault(each.table, []).append(each)
    own = {}
    is_whole = True
    for table, parts in by_table.items():
        rows, incomplete = _read_parts(folder.parent, table, parts)
        if incomplete:
            is_whole = False
            networks = ", ".join(sorted(incomplete))
            print(f"{table}: rows of {networks} are missing; run the sweep again to measure them", file=sys.stderr)
        if rows is None:
            continue
        frame = rows.to_pandas().drop(columns=ROW_KEY)
        schemas[table] = leave_out_empty(rows.drop_columns([ROW_KEY]).schema, frame)
        # A row is there twice while another sweep puts files together.
        frames[table] = _finish(frame.drop_duplicates(read_key(schemas[table]), keep="last"), schemas[table])
        if any(each.part.is_own for each in parts):
            own[table] = _describe_own(schemas[table])
    return _Together(LoadedTables(frames, notes, own), schemas, is_whole)


def _choose_columns(runs: pd.DataFrame) -> pa.Schema:
    """Choose the columns of the table `runs` that its networks read, beside those that it always has."""
    fields = [field for field in RUNS.schema if field.name in runs or field.name in FIXED]
    return pa.schema(fields, RUNS.schema.metadata)


def _read_parts(results: Path, table: str, parts: Iterable[Chosen]) -> tuple[pa.Table | None, set[str]]:
    """Read the rows of a table.

    Returns:
        The rows, None if there are none, and the networks that lack some.
    """
    wanted: dict[str, dict[str, Sequence[int]]] = {}
    # Columns are those of the newest rows.
    for each in sorted(parts, key=lambda each: each.part.written, reverse=True):
        wanted.setdefault(each.run, {}).update(each.part.keys)

    schema = None
    tables = []
    for run, keys in wanted.items():
        for rows in _read_network(locate_rows(results, run, table), schema, [*keys]):
            schema = schema or rows.schema
            tables.append(rows)

    asked = [(run, key, step) for run, keys in wanted.items() for key, steps in keys.items() for step in steps]
    expected = pd.DataFrame(asked, columns=_FOUND)
    if not tables:
        return None, {*expected["run"]}
    whole = pa.concat_tables(tables)
    found = whole.select(_FOUND).to_pandas()
    # A row may be of a step for which no job of this sweep asked.
    is_asked = pd.MultiIndex.from_frame(found).isin(pd.MultiIndex.from_frame(expected))
    there = found[is_asked].drop_duplicates()
    counts = expected["run"].value_counts().sub(there["run"].value_counts(), fill_value=0)
    shown = whole.filter(pa.array(is_asked)) if is_asked.any() else None
    return shown, {*counts.index[counts > 0]}


def _read_network(folder: Path, schema: pa.Schema | None, keys: Sequence[str]) -> list[pa.Table]:
    """Read the rows of a network, with the columns of those that have these keys.

    Files that cannot be read are named and set aside.
    """
    for _ in range(_LISTINGS):
        tables = []
        has_vanished = False
        for path in sorted(folder.glob("*.parquet")):
            try:
                rows = read_rows(path, schema or read_schema(path))
            except Unreadable as error:
                if path.exists():
                    quarantine(path, error, "run the sweep again to measure it again")
                else:
                    has_vanished = True
                continue
            # A file of rows of an earlier version of a user's measurement alone may have other columns.
            if schema is None and not compute.any(compute.is_in(rows[ROW_KEY], value_set=pa.array(keys))).as_py():
                continue
            schema = rows.schema
            tables.append(rows)
        if not has_vanished:
            break
    return tables


def _describe_own(schema: pa.Schema) -> OwnTable:
    """Describe a table of the user's own by the schema of its files."""
    key = read_key(schema)
    meanings = read_meanings(schema)
    numbers = {}
    for field in schema:
        is_number = not pa.types.is_string(field.type)
        if is_number and field.name not in (*key, "epoch"):
            numbers[field.name] = meanings[field.name]
    return OwnTable(key, numbers)


def _finish(rows: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Put rows in order, with the columns of the schema."""
    missing = [column for column in schema.names if column not in rows]
    filled = rows.assign(**dict.fromkeys(missing))
    ordered = filled.sort_values(read_key(schema), ignore_index=True)
    return conform(ordered, schema)
