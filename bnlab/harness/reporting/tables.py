"""Tidy tables of an experiment, put together from what its jobs asked for when they are read.

results/<experiment>/requests/, columns.parquet   what was asked for, see `bnlab.harness.requests`
results/<experiment>/tables/<table>.parquet   one row for each key, see `written`
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from bnlab.files import Unreadable, set_aside, write_whole
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.written import (
    Stamps,
    Written,
    find_table,
    leave_out,
    read_stamps,
    read_written,
    write_all,
)
from bnlab.harness.requests import Request, Selection, columns_path, find_rows, find_run, read_request
from bnlab.harness.run_table import RUNS
from bnlab.harness.schema import ORIGIN, conform, read_frame, read_key, read_rows, read_schema

_Tables = dict[str, tuple[pd.DataFrame, pa.Schema]]
_REQUEST = "request"  # a further column while rows are put together: the number of the request that asks for them
_MEASURED = ("run", "estimator", "split", "shift")  # rows that agree in these are measured from one origin


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables of an experiment: of each network and estimator the rows of the newest origin, one for each key.

    Files that cannot be read are named and set aside.
    """
    stamps = read_stamps(folder)
    current = _bring_up_to_date(folder, read_written(folder, stamps), stamps)
    return {name: frame for name, (frame, _) in current.tables.items()}


def _bring_up_to_date(folder: Path, written: Written, stamps: Stamps) -> Written:
    """Put the rows of the networks whose requests are newer into the tables that were written; these, if none are."""
    changed = written.list_changed(stamps)
    if not changed:
        return written

    added, incomplete = _put_all_together(folder, [name for name in stamps if find_run(name) in changed])
    if not _have_same_columns(written, added):  # those of another version
        written = Written()
        added, incomplete = _put_all_together(folder, list(stamps))
    return Written(_join(written.tables, added, changed), leave_out(stamps, incomplete))


def _put_all_together(folder: Path, names: Sequence[str]) -> tuple[_Tables, set[str]]:
    """Put all tables together of the requests with these file names; also, the networks that lack rows."""
    requests = _read_requests(folder, names)
    found: _Tables = {}
    incomplete = set[str]()
    if requests:
        columns = _read_columns(folder)
        found["runs"] = (_put_runs_together(requests, columns), columns)
    for name in dict.fromkeys(name for request in requests for name in request.selections):
        parts, lacking = _read_parts(folder.parent, name, requests)
        incomplete.update(lacking)
        if parts:
            found[name] = _put_together(parts, [request.selections.get(name, Selection()) for request in requests])
    return found, incomplete


def _have_same_columns(written: Written, added: _Tables) -> bool:
    """Return whether the tables that were written have the columns of the rows that are added to them."""
    both = written.tables.keys() & added.keys() - {"runs"}
    return all(written.tables[name][1].names == added[name][1].names for name in both)


def _join(written: Mapping[str, tuple[pd.DataFrame, pa.Schema]], added: _Tables, changed: set[str]) -> _Tables:
    """Put the rows of the changed networks in the place of those that were written."""
    joined = {}
    for name, (frame, schema) in {**written, **added}.items():
        if name in written:
            rows, _ = written[name]
            parts = [rows[~rows["run"].isin(changed)]]
            if name in added:
                parts.append(frame)
            frame = pd.concat(parts, ignore_index=True).sort_values(read_key(schema), ignore_index=True)
            frame = conform(frame, schema)
        joined[name] = (frame, schema)
    return joined


def _read_requests(folder: Path, names: Iterable[str]) -> list[Request]:
    """The requests with these file names, the newest last."""
    requests = []
    for name in sorted(names):
        path = folder / "requests" / name
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
    rows = {request.run: request.row for request in requests}
    frame = pd.DataFrame(list(rows.values()))
    missing = [column for column in columns.names if column not in frame]
    return conform(frame.assign(**dict.fromkeys(missing)).sort_values("run"), columns)


def _read_parts(results: Path, name: str, requests: Sequence[Request]) -> tuple[list[pa.Table], list[str]]:
    """Read the files with rows of a table that requests name; name on stderr the networks of which some are missing.

    Returns:
        The rows, with a column `_REQUEST` and in the order of requests; the networks of which files are missing.
    """
    schema = None
    parts = []
    incomplete = []
    for number, request in reversed(list(enumerate(requests))):  # columns are those of the newest rows
        for file in request.selections.get(name, Selection()).files:
            path = find_rows(results, request.run, name) / file
            if not path.exists():
                incomplete.append(request.run)
                continue
            try:
                schema = schema or read_schema(path)
                rows = read_rows(path, schema)
            except Unreadable as error:
                set_aside(path, error, "run the sweep again to measure it again")
                incomplete.append(request.run)
                continue
            parts.append(rows.append_column(_REQUEST, pa.repeat(number, len(rows))))
    parts.reverse()

    if incomplete:
        networks = ", ".join(sorted({*incomplete}))
        print(f"{name}: rows of {networks} are missing; run the sweep again to measure them again", file=sys.stderr)
    return parts, incomplete


def _put_together(parts: Sequence[pa.Table], selections: Iterable[Selection]) -> tuple[pd.DataFrame, pa.Schema]:
    """Put the rows together that selections are about: of each network and estimator those of the newest origin."""
    whole = pa.concat_tables(parts)
    rows = _select(whole.to_pandas(), selections)
    group = rows.groupby([column for column in _MEASURED if column in rows], sort=False)
    rows = rows[rows[ORIGIN] == group[ORIGIN].transform("last")]

    key = read_key(whole.schema)
    rows = rows.drop_duplicates(key, keep="last").sort_values(key)
    schema = whole.drop_columns([ORIGIN, _REQUEST]).schema
    return conform(rows, schema), schema


def _select(rows: pd.DataFrame, selections: Iterable[Selection]) -> pd.DataFrame:
    """The rows that selections are about, each looked for in the one whose number is in its column `_REQUEST`."""
    wanted = []
    for number, selection in enumerate(selections):
        for columns, steps in selection.rows:
            wanted += [{_REQUEST: number, **columns, "step": step} for step in steps]
    if not wanted:
        return rows[:0]
    keys = pd.DataFrame(wanted).drop_duplicates()
    if "momentum" in keys:
        keys = keys.astype({"momentum": float})  # none is NaN, which agrees with NaN
    return rows.merge(keys, on=list(keys), how="inner")


def write_tables(folder: Path, csv: bool = False) -> dict[str, pd.DataFrame]:
    """Put every table together and write it; safe while other sweeps measure."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        stamps = read_stamps(folder)
        written = read_written(folder, stamps)
        current = _bring_up_to_date(folder, written, stamps)
        if current is not written:
            write_all(folder, current)
        for name, (frame, _) in current.tables.items():
            path = find_table(folder, name).with_suffix(".csv")
            if csv or path.exists():  # an earlier one would be of other rows
                write_whole(path, partial(frame.to_csv, index=False))
    return {name: frame for name, (frame, _) in current.tables.items()}


class Tables(dict[str, pd.DataFrame]):
    """The tables of an experiment that have been measured, by name."""

    def __missing__(self, name: str) -> pd.DataFrame:
        raise NoRows(f"the table {name} has not been measured; there are {', '.join(self)}")


def load(name: str, results: str | Path = "results") -> Tables:
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `load("momentum", "results/reference")` has the committed ones.

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
        return Tables({path.stem: read_frame(path) for path in sorted((folder / "tables").glob("*.parquet"))})
    where = [] if str(results) == "results" else [f"results={results}"]
    command = shlex.join(["bnlab", "sweep", f"name={name}", *where])
    raise UserError(
        f"no results for {name!r} in {results}/; run: {command} with what is to be swept, or with experiment={name} "
        "where conf/experiment/ has it"
    )
