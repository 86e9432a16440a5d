"""Tidy tables of an experiment, put together from what its jobs asked for when they are read.

results/<experiment>/requests/, columns.parquet   what was asked for, see `bnlab.harness.requests`
results/<experiment>/tables/<table>.parquet   one row for each key, written for people and other programs
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from bnlab.files import Unreadable, set_aside, write_whole
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.requests import Request, Selection, columns_path, find_rows, read_request
from bnlab.harness.run_table import RUNS, rename_columns, rename_row
from bnlab.harness.schema import ORIGIN, conform, read_frame, read_key, read_schema, write_frame

_MEASURED = ("run", "estimator", "split", "shift")  # rows that agree in these are measured from one origin


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables of an experiment: of each network and estimator the rows of the newest origin, one for each key.

    Files that cannot be read are named and set aside.
    """
    return {name: frame for name, (frame, _) in _assemble(folder).items()}


def _assemble(folder: Path) -> dict[str, tuple[pd.DataFrame, pa.Schema]]:
    """Tables, each with the schema of its files."""
    requests = _read_requests(folder)
    found = {}
    if requests:
        columns = _read_columns(folder)
        found["runs"] = (_put_runs_together(requests, columns), columns)
    names = dict.fromkeys(name for request in requests for name in request.selections)
    for name in names:
        frame, schema = _put_together(folder.parent, name, requests)
        if schema is not None:
            found[name] = (frame, schema)
    return found


def _read_requests(folder: Path) -> list[Request]:
    """The requests of an experiment, the newest last."""
    requests = []
    for path in sorted((folder / "requests").glob("*.json")):
        try:
            requests.append(read_request(path))
        except Unreadable as error:
            set_aside(path, error, "run the sweep again to ask for its rows again")
    return sorted(requests, key=lambda request: request.written)


def _read_columns(folder: Path) -> pa.Schema:
    """Read what the columns of `runs` are; those that are no settings, where the sweep has not said it."""
    try:
        return read_schema(columns_path(folder))
    except Unreadable:  # of an earlier version, or a job by itself: types are those of the values
        return RUNS.schema


def _put_runs_together(requests: Sequence[Request], columns: pa.Schema) -> pd.DataFrame:
    """The table `runs`: of each network the row of the newest request."""
    rows = {request.run: rename_row(request.row) for request in requests}
    frame = pd.DataFrame(list(rows.values()))
    missing = [column for column in columns.names if column not in frame]
    return conform(frame.assign(**dict.fromkeys(missing)).sort_values("run"), columns)


def _put_together(results: Path, name: str, requests: Sequence[Request]) -> tuple[pd.DataFrame, pa.Schema | None]:
    """All rows of a table that were asked for, and the schema of their files; None where there is no file."""
    schema = None
    frames = []
    incomplete = []
    for request in requests:
        selection = request.selections.get(name, Selection())
        for file in selection.files:
            path = find_rows(results, request.run, name) / file
            if not path.exists():
                incomplete.append(request.run)
                continue
            try:
                schema = schema or read_schema(path)
                rows = read_frame(path, schema)
            except Unreadable as error:
                set_aside(path, error, "run the sweep again to measure it again")
                continue
            frames.append(_select(rows, selection))

    if incomplete:
        networks = ", ".join(dict.fromkeys(incomplete))
        print(f"{name}: rows of {networks} are missing; run the sweep again to measure them again", file=sys.stderr)
    if schema is None or not frames:
        return pd.DataFrame(), None

    rows = pd.concat(frames, ignore_index=True)
    group = rows.groupby([column for column in _MEASURED if column in rows], sort=False)
    rows = rows[rows[ORIGIN] == group[ORIGIN].transform("last")]
    key = read_key(schema)
    rows = rows.drop_duplicates(key, keep="last").sort_values(key)
    schema = schema.remove(schema.get_field_index(ORIGIN))
    return conform(rows, schema), schema


def _select(rows: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    """The rows that a selection is about."""
    wanted = [{**columns, "step": step} for columns, steps in selection.rows for step in steps]
    keys = pd.DataFrame(wanted).drop_duplicates()
    if "momentum" in keys:
        keys = keys.astype({"momentum": float})  # none is NaN, which agrees with NaN
    return rows.merge(keys, on=list(keys), how="inner") if len(keys) else rows[:0]


def write_tables(folder: Path, csv: bool = False) -> dict[str, pd.DataFrame]:
    """Put every table together and write it; safe while other sweeps measure."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        found = _assemble(folder)
        for name, (frame, schema) in found.items():
            path = folder / "tables" / f"{name}.parquet"
            write_frame(path, frame, schema)
            if csv or path.with_suffix(".csv").exists():  # an earlier one would be of other rows
                write_whole(path.with_suffix(".csv"), partial(frame.to_csv, index=False))
    return {name: frame for name, (frame, _) in found.items()}


class Tables(dict[str, pd.DataFrame]):
    """The tables of an experiment that have been measured, by name."""

    def __missing__(self, name: str) -> pd.DataFrame:
        raise NoRows(f"the table {name} has not been measured; there are {', '.join(self)}")


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table that was written; columns of `runs` that have old names are renamed."""
    frame = read_frame(path)
    return rename_columns(frame) if path.stem == "runs" else frame


def load(name: str, results: str | Path = "results") -> Tables:
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `load("momentum", "results/reference")` has the committed ones.
    Columns that an earlier version wrote have the names of today.

    Raises:
        UserError: nothing has been measured under this name.

    >>> tables = load("quickstart", "results/reference")
    >>> sorted(tables)
    ['evaluations', 'gaps', 'runs']
    >>> sorted(tables["runs"]["batch_size"].unique().tolist())
    [4, 32, 256]
    """
    folder = Path(results) / name
    if (folder / "requests").is_dir():
        return Tables(assemble(folder))
    if (folder / "tables").is_dir():
        return Tables({path.stem: _read_table(path) for path in sorted((folder / "tables").glob("*.parquet"))})
    where = [] if str(results) == "results" else [f"results={results}"]
    command = shlex.join(["bnlab", "sweep", f"name={name}", *where])
    raise UserError(
        f"no results for {name!r} in {results}/; run: {command} with what is to be swept, or with experiment={name} "
        "where conf/experiment/ has it"
    )
