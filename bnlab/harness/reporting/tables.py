"""Tidy tables of an experiment, put together from what its jobs asked for when they are read.

results/<experiment>/requests/, columns.parquet   what was asked for, see `bnlab.harness.requests`
results/<experiment>/tables/<table>.parquet   one row for each key
results/<experiment>/tables/made_from.json   the requests whose rows these files hold: newer ones alone are read again
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from bnlab.files import Unreadable, reading, set_aside, write_text, write_whole
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.requests import Request, Selection, columns_path, find_rows, find_run, read_request
from bnlab.harness.run_table import RUNS
from bnlab.harness.schema import ORIGIN, conform, read_frame, read_key, read_rows, read_schema, write_frame

_WithSchemas = dict[str, tuple[pd.DataFrame, pa.Schema]]
_Stamps = Mapping[str, int]  # the name of each request's file → when it was last written, in ns since 1970
_REQUEST = "request"  # a further column while rows are put together: the number of the request that asks for them
_MEASURED = ("run", "estimator", "split", "shift")  # rows that agree in these are measured from one origin


class LoadedTables(dict[str, pd.DataFrame]):
    """The tables of an experiment that have been measured, by name."""

    def __missing__(self, name: str) -> pd.DataFrame:
        raise NoRows(f"the table {name} has not been measured; there are {', '.join(self)}")


def load(name: str, results: str | Path = "results") -> LoadedTables:
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
        current, _, _ = _bring_up_to_date(folder)
        return LoadedTables({name: frame for name, (frame, _) in current.items()})
    if (folder / "tables").is_dir():
        return LoadedTables({path.stem: read_frame(path) for path in sorted((folder / "tables").glob("*.parquet"))})
    where = [] if str(results) == "results" else [f"results={results}"]
    command = shlex.join(["bnlab", "sweep", f"name={name}", *where])
    raise UserError(
        f"no results for {name!r} in {results}/; run: {command} with what is to be swept, or with experiment={name} "
        "where conf/experiment/ has it"
    )


def write_tables(folder: Path, csv: bool = False) -> dict[str, pd.DataFrame]:
    """Put every table together and write it; safe while other sweeps measure."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        current, stamps, is_new = _bring_up_to_date(folder)
        record = folder / "tables" / "made_from.json"
        if is_new:
            record.unlink(missing_ok=True)  # until it comes back, nobody trusts files of which some are newer
            for name, (frame, schema) in current.items():
                write_frame(folder / "tables" / f"{name}.parquet", frame, schema)
            write_text(record, json.dumps({"tables": list(current), "requests": stamps}))
        for name, (frame, _) in current.items():
            path = folder / "tables" / f"{name}.csv"
            if csv or path.exists():  # an earlier one would be of other rows
                write_whole(path, partial(frame.to_csv, index=False))
    return {name: frame for name, (frame, _) in current.items()}


def _bring_up_to_date(folder: Path) -> tuple[_WithSchemas, _Stamps, bool]:
    """Read the tables that were written, and put the rows of networks with newer requests in place of theirs.

    Files that cannot be read are named and set aside.

    Returns:
        All tables: of each network and estimator the rows of the newest origin, one for each key. The requests that
        these hold all rows of. Whether there were newer requests.
    """
    stamps = _read_stamps(folder)
    written, known = _read_written(folder)
    if not known.keys() <= stamps.keys():  # the rows of a request that was removed are among them
        written, known = {}, {}
    changed = {find_run(name) for name, stamp in stamps.items() if known.get(name) != stamp}
    if not changed:
        return written, known, False

    requests = _read_requests(folder, [name for name in stamps if find_run(name) in changed])
    current = {}
    for name, (frame, schema) in written.items():
        current[name] = (frame[~frame["run"].isin(changed)], schema)
    if requests:
        newest = {request.run: request.row for request in requests}
        columns = RUNS.schema
        with contextlib.suppress(Unreadable):  # not written by an earlier version, or a job by itself
            columns = read_schema(columns_path(folder))
        _add_rows(current, "runs", pd.DataFrame(list(newest.values())), columns)
    incomplete = set[str]()
    for name in dict.fromkeys(name for request in requests for name in request.selections):
        parts, lacking = _read_parts(folder.parent, name, requests)
        incomplete.update(lacking)
        if parts:
            selections = [request.selections.get(name, Selection()) for request in requests]
            _add_rows(current, name, *_put_together(parts, selections))
    whole = {name: stamp for name, stamp in stamps.items() if find_run(name) not in incomplete}
    return current, whole, True


def _add_rows(current: _WithSchemas, name: str, rows: pd.DataFrame, schema: pa.Schema) -> None:
    """Add rows to a table; columns are those of the schema, which rows of an earlier version may lack."""
    if name in current:
        before, _ = current[name]
        rows = pd.concat([before, rows], ignore_index=True)
    missing = [column for column in schema.names if column not in rows]
    filled = rows.assign(**dict.fromkeys(missing))
    key = read_key(schema)
    ordered = filled.sort_values(key, ignore_index=True)
    current[name] = (conform(ordered, schema), schema)


def _read_stamps(folder: Path) -> dict[str, int]:
    """Read when each request of an experiment was written."""
    if not (folder / "requests").is_dir():
        return {}
    with os.scandir(folder / "requests") as entries:
        return {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".json")}


def _read_written(folder: Path) -> tuple[_WithSchemas, _Stamps]:
    """Read the tables that were written, and the requests that they were put together from; none where a file fails."""
    path = folder / "tables" / "made_from.json"
    try:
        with reading(path):
            record = json.loads(path.read_text(encoding="utf-8"))
        written = {}
        for name in record["tables"]:
            file = folder / "tables" / f"{name}.parquet"
            written[name] = (read_frame(file), read_schema(file))
        return written, record["requests"]
    except Unreadable:  # or there is none
        return {}, {}


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


def _read_parts(results: Path, name: str, requests: Sequence[Request]) -> tuple[list[pa.Table], list[str]]:
    """Read the files with rows of a table, in the order of requests; name and return the networks that lack some."""
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
    measured = [column for column in _MEASURED if column in rows]
    group = rows.groupby(measured, sort=False)
    newest = group[ORIGIN].transform("last")
    of_newest = rows[rows[ORIGIN] == newest]

    key = read_key(whole.schema)
    one_for_each = of_newest.drop_duplicates(key, keep="last")
    asked_for = whole.drop_columns([ORIGIN, _REQUEST])
    return one_for_each, asked_for.schema


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
