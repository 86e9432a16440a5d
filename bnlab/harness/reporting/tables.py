"""Tidy tables of an experiment, put together from what its jobs asked for when they are read.

results/<experiment>/requests/, columns.parquet   what was asked for, see `bnlab.harness.requests`
results/<experiment>/tables/<table>.parquet   one row for each key, as a sweep leaves them
results/<experiment>/tables/made_from.json   the requests whose rows these files hold: they are read while there are no
                                             others
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from bnlab.common.files import Unreadable, reading, set_aside, write_text
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.requests import Request, Selection, columns_path, find_rows, read_request
from bnlab.harness.run_table import RUNS
from bnlab.harness.schema import ORIGIN, conform, read_frame, read_key, read_rows, read_schema, write_frame

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
        current = _read_current(folder)
        if current is None:
            together, _ = _put_together(folder)
            current = {name: frame for name, (frame, _) in together.items()}
        return LoadedTables(current)
    if (folder / "tables").is_dir():
        return LoadedTables({path.stem: read_frame(path) for path in sorted((folder / "tables").glob("*.parquet"))})
    where = [] if str(results) == "results" else [f"results={results}"]
    command = shlex.join(["bnlab", "sweep", f"name={name}", *where])
    raise UserError(
        f"no results for {name!r} in {results}/; run: {command} with what is to be swept, or with experiment={name} "
        "where conf/experiment/ has it"
    )


def write_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Put every table together and write it, unless that was done; safe while other sweeps measure."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        current = _read_current(folder)
        if current is not None:
            return current

        record = folder / "tables" / "made_from.json"
        record.unlink(missing_ok=True)  # until it comes back, nobody trusts files of which some are newer
        stamps = _read_stamps(folder)  # first: a request that comes in the meantime is not among them
        tables, is_whole = _put_together(folder)
        for name, (frame, schema) in tables.items():
            write_frame(folder / "tables" / f"{name}.parquet", frame, schema)
        if is_whole:
            write_text(record, json.dumps({"tables": list(tables), "requests": stamps}))
    return {name: frame for name, (frame, _) in tables.items()}


def _read_current(folder: Path) -> dict[str, pd.DataFrame] | None:
    """Read the tables that were written; None if they do not hold all that was asked for, or a file fails."""
    record = folder / "tables" / "made_from.json"
    try:
        with reading(record):
            written = json.loads(record.read_text(encoding="utf-8"))
        if written["requests"] == _read_stamps(folder):
            return {name: read_frame(folder / "tables" / f"{name}.parquet") for name in written["tables"]}
    except Unreadable:  # or there is none
        pass
    return None


def _read_stamps(folder: Path) -> dict[str, int]:
    """Read when each request of an experiment was written, in ns since 1970."""
    if not (folder / "requests").is_dir():
        return {}
    with os.scandir(folder / "requests") as entries:
        return {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".json")}


def _put_together(folder: Path) -> tuple[dict[str, tuple[pd.DataFrame, pa.Schema]], bool]:
    """Put all tables together: of each network and estimator the rows of the newest origin, one for each key.

    Files that cannot be read are named and set aside. Returns the tables with their schemas, and whether all rows that
    were asked for were there.
    """
    requests = read_requests(folder)
    if not requests:
        return {}, False
    columns = RUNS.schema
    with contextlib.suppress(Unreadable):  # not written by an earlier version, or a job by itself
        columns = read_schema(columns_path(folder))
    newest = {request.run: request.row for request in requests}
    tables = {"runs": _finish(pd.DataFrame(list(newest.values())), columns)}

    is_whole = True
    for name in dict.fromkeys(name for request in requests for name in request.selections):
        parts, has_all = _read_parts(folder.parent, name, requests)
        is_whole = is_whole and has_all
        if parts:
            selections = [request.selections.get(name, Selection()) for request in requests]
            whole = pa.concat_tables(parts)
            rows = _select_newest(whole.to_pandas(), selections, read_key(whole.schema))
            tables[name] = _finish(rows, whole.drop_columns([ORIGIN, _REQUEST]).schema)
    return tables, is_whole


def _finish(rows: pd.DataFrame, schema: pa.Schema) -> tuple[pd.DataFrame, pa.Schema]:
    """Put rows in order, with the columns of the schema, which rows of an earlier version may lack."""
    missing = [column for column in schema.names if column not in rows]
    filled = rows.assign(**dict.fromkeys(missing))
    ordered = filled.sort_values(read_key(schema), ignore_index=True)
    return conform(ordered, schema), schema


def read_requests(folder: Path) -> list[Request]:
    """The requests of an experiment, the newest last."""
    requests = []
    for path in sorted((folder / "requests").glob("*.json")):
        try:
            requests.append(read_request(path))
        except Unreadable as error:
            set_aside(path, error, "run the sweep again to ask for its rows again")
    return sorted(requests, key=lambda request: request.written)


def _read_parts(results: Path, name: str, requests: Sequence[Request]) -> tuple[list[pa.Table], bool]:
    """Read the files with rows of a table, in the order of requests; name networks that lack some: were all there?"""
    schema = None
    parts = []
    incomplete = set[str]()
    for number, request in reversed(list(enumerate(requests))):  # columns are those of the newest rows
        for file in request.selections.get(name, Selection()).files:
            path = find_rows(results, request.run, name) / file
            if not path.exists():
                incomplete.add(request.run)
                continue
            try:
                schema = schema or read_schema(path)
                rows = read_rows(path, schema)
            except Unreadable as error:
                set_aside(path, error, "run the sweep again to measure it again")
                incomplete.add(request.run)
                continue
            parts.append(rows.append_column(_REQUEST, pa.repeat(number, len(rows))))
    parts.reverse()

    if incomplete:
        networks = ", ".join(sorted(incomplete))
        print(f"{name}: rows of {networks} are missing; run the sweep again to measure them again", file=sys.stderr)
    return parts, not incomplete


def _select_newest(rows: pd.DataFrame, selections: Iterable[Selection], key: list[str]) -> pd.DataFrame:
    """Select the rows that selections are about: of each network and estimator those of the newest origin.

    Each selection is looked for in the rows whose column `_REQUEST` has its number.
    """
    wanted = []
    for number, selection in enumerate(selections):
        for columns, steps in selection.rows:
            wanted += [{_REQUEST: number, **columns, "step": step} for step in steps]
    if not wanted:
        return rows[:0]
    subjects = pd.DataFrame(wanted).drop_duplicates()
    if "momentum" in subjects:
        subjects = subjects.astype({"momentum": float})  # none is NaN, which agrees with NaN
    selected = rows.merge(subjects, on=list(subjects), how="inner")

    measured = [column for column in _MEASURED if column in selected]
    newest = selected.groupby(measured, sort=False)[ORIGIN].transform("last")
    return selected[selected[ORIGIN] == newest].drop_duplicates(key, keep="last")
