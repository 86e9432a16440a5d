"""Tidy tables of an experiment, put together from what its jobs asked for when they are read.

results/<experiment>/requests/, columns.parquet   what was asked for, see `bnlab.harness.requests`
results/<experiment>/tables/<table>.parquet   one row for each key, as a sweep leaves them
results/<experiment>/tables/made_from.json   the requests whose rows these files hold, and the user's code at that time:
                                             they are read while both are the same

Rows of two trainings of a network, or that were measured by two versions of a user's estimator or measurement, are
never in one table: see `_keep_one_training` and `_keep_one_version`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from bnlab.common.files import Unreadable, quarantine, reading, write_text
from bnlab.common.names import EstimatorName
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.requests import Request, Selection, locate_columns, locate_rows, read_commands, read_requests
from bnlab.harness.run_table import RUNS
from bnlab.harness.schema import (
    ORIGIN,
    conform,
    read_frame,
    read_key,
    read_meanings,
    read_rows,
    read_schema,
    write_frame,
)
from bnlab.harness.source_code import Code, digest_files, list_changed, say_changed

_REQUEST = "request"  # a further column while rows are put together: the number of the request that asks for them
# Rows that agree in these are measured from one origin. Momentum and statistics_split are left out on purpose: once one
# of them was measured from a newer origin, rows of the others from older ones are outdated too.
_MEASURED = ("run", "estimator", "split", "shift")


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
    """The tables of an experiment that have been measured, by name.

    Attributes:
        notes: sentences on rows that were measured by other code of the user's than there is now, or left out.
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
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `load("momentum", "results/reference")` has the committed ones.
    Of rows that an estimator or measurement of yours has measured, those of its code as it is now count; where it has
    none, those that were written last. What is left out is said on stderr, with the command that measures it again.

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
    if (folder / "requests").is_dir():
        return _read_current(folder) or _put_together(folder).tables
    # Committed results have tables only, without the requests that they were put together from.
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
    """Put every table together and write it, unless that was done; safe while other sweeps measure."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        current = _read_current(folder)
        if current is not None:
            return current

        record = folder / "tables" / "made_from.json"
        record.unlink(missing_ok=True)  # until it comes back, nobody trusts files of which some are newer
        stamps = _read_stamps(folder)  # first: a request that comes in the meantime is not among them
        together = _put_together(folder)
        tables = together.tables
        for name, frame in tables.items():
            write_frame(folder / "tables" / f"{name}.parquet", frame, together.schemas[name])
        # Without a record these files are not trusted: what is missing is looked for again at the next reading.
        if together.is_whole:
            made_from = {
                "tables": list(tables),
                "requests": stamps,
                "code": together.code,
                "notes": tables.notes,
                "own": {name: asdict(each) for name, each in tables.own.items()},
            }
            write_text(record, json.dumps(made_from))
    return tables


def _read_current(folder: Path) -> LoadedTables | None:
    """Read the tables that were written; None if they do not hold all that was asked for, or a file fails."""
    record = folder / "tables" / "made_from.json"
    try:
        with reading(record):
            written = json.loads(record.read_text(encoding="utf-8"))
        code = written.get("code", {})  # null: of a module whose file was gone
        now = digest_files(code)
        is_same_code = all(now.get(module) == known for module, known in code.items())
        if is_same_code and written["requests"] == _read_stamps(folder):
            frames = {name: read_frame(folder / "tables" / f"{name}.parquet") for name in written["tables"]}
            own = {name: OwnTable(**each) for name, each in written.get("own", {}).items()}
            return LoadedTables(frames, written.get("notes", ()), own)
    except Unreadable:  # or there is none
        pass
    return None


def _read_stamps(folder: Path) -> dict[str, int]:
    """Read when each request of an experiment was written, in ns since 1970."""
    if not (folder / "requests").is_dir():
        return {}
    with os.scandir(folder / "requests") as entries:
        return {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".json")}


@dataclass(frozen=True)
class _Together:
    """What `_put_together` returns.

    Attributes:
        tables: all of them.
        schemas: of the tables, by name.
        code: digests of the files of the user's code as they are now; null where one is gone.
        is_whole: whether all rows that were asked for were there.
    """

    tables: LoadedTables
    schemas: dict[str, pa.Schema]
    code: dict[str, str | None]
    is_whole: bool


def _put_together(folder: Path) -> _Together:
    """Put all tables together: of each network and estimator the rows of the newest origin, one for each key.

    Files that cannot be read are named and set aside.
    """
    requests, sentences = _keep_one_training(read_requests(folder), folder)
    if not requests:
        return _Together(LoadedTables({}), {}, {}, is_whole=False)
    columns = RUNS.schema
    with contextlib.suppress(Unreadable):  # not written by an earlier version, or a job by itself
        columns = read_schema(locate_columns(folder))
    # Requests are in the order of time, so that the newest of each network takes the place of others.
    newest = {request.run: request.row for request in requests}
    frames = {"runs": _finish(pd.DataFrame(list(newest.values())), columns)}
    schemas = {"runs": columns}

    modules = _list_modules(requests)
    now = digest_files(modules)

    is_whole = True
    tables_by_note: dict[tuple[str, str], list[str]] = {}  # a note is the name of an estimator and a sentence
    for name in _list_tables(requests):
        parts, has_all = _read_parts(folder.parent, name, requests)
        is_whole = is_whole and has_all
        if not parts:
            continue
        whole = pa.concat_tables(parts)
        selections = [request.selections.get(name, Selection()) for request in requests]
        # The version of the code is chosen before the newest rows: these may be of another version, and
        # their keys would be lost with them.
        selected = _select_rows(whole.to_pandas(), selections)
        one_version, notes = _keep_one_version(selected, name, requests, now, folder)
        rows = _keep_newest(one_version, read_key(whole.schema))
        schemas[name] = whole.drop_columns([ORIGIN, _REQUEST]).schema
        frames[name] = _finish(rows, schemas[name])
        for note in notes:
            tables_by_note.setdefault(note, []).append(name)
    for (estimator, sentence), names in tables_by_note.items():
        of_estimator = f"{estimator} in " if estimator else ""
        sentences.append(f"{of_estimator}{', '.join(names)}: {sentence}")
    own = {name: _describe_own(schemas[name]) for name in frames if _is_own(name, requests)}
    tables = LoadedTables(frames, sentences, own)
    return _Together(tables, schemas, {module: now.get(module) for module in modules}, is_whole)


def _keep_one_training(requests: Sequence[Request], folder: Path) -> tuple[list[Request], list[str]]:
    """Keep, of each network, the requests that are about its latest training; what is left out is said.

    A network that is trained again, for another checkpoint or because it was removed, may have other numbers: on
    another machine, on other threads or with other versions. Rows of both would be no comparison within a network.

    Args:
        requests: all of the experiment, the newest last.
        folder: of the experiment.
    """
    latest = {request.run: request.training for request in requests if request.training}
    kept = [request for request in requests if request.is_of(latest.get(request.run, ""))]
    left_out = [request for request in requests if not request.is_of(latest.get(request.run, ""))]
    if not left_out:
        return kept, []
    count = len({request.run for request in left_out})
    networks = "1 network" if count == 1 else f"{count:,} networks"
    commands = read_commands(folder, {request.command for request in left_out})
    return kept, [
        f"rows of {networks} are of an earlier training, which had other numbers, and left out; to measure them again: "
        f"{'; '.join(commands) or 'sweep again'}"
    ]


def _list_modules(requests: Iterable[Request]) -> set[str]:
    """List the modules of the user's code that measured what was asked for."""
    modules = set[str]()
    for request in requests:
        for selection in request.selections.values():
            for code in selection.code.values():
                modules.update(code)
    return modules


def _list_tables(requests: Iterable[Request]) -> list[str]:
    """List the tables of which rows were asked for, in the order of the first request for each."""
    names: dict[str, None] = {}
    for request in requests:
        names |= dict.fromkeys(request.selections)
    return list(names)


def _is_own(table: str, requests: Iterable[Request]) -> bool:
    """Find out if a table is that of a measurement of the user's own."""
    return any(request.selections[table].is_own for request in requests if table in request.selections)


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
    """Put rows in order, with the columns of the schema, which rows of an earlier version may lack."""
    missing = [column for column in schema.names if column not in rows]
    filled = rows.assign(**dict.fromkeys(missing))
    ordered = filled.sort_values(read_key(schema), ignore_index=True)
    return conform(ordered, schema)


def _read_parts(results: Path, name: str, requests: Sequence[Request]) -> tuple[list[pa.Table], bool]:
    """Read the files with rows of a table, in the order of requests; name networks that lack some: were all there?"""
    schema = None
    parts = []
    incomplete = set[str]()
    for number, request in reversed(list(enumerate(requests))):  # columns are those of the newest rows
        for file in request.selections.get(name, Selection()).files:
            path = locate_rows(results, request.run, name) / file
            if not path.exists():
                incomplete.add(request.run)
                continue
            try:
                schema = schema or read_schema(path)
                rows = read_rows(path, schema)
            except Unreadable as error:
                quarantine(path, error, "run the sweep again to measure it again")
                incomplete.add(request.run)
                continue
            parts.append(rows.append_column(_REQUEST, pa.repeat(number, len(rows))))
    parts.reverse()

    if incomplete:
        networks = ", ".join(sorted(incomplete))
        print(f"{name}: rows of {networks} are missing; run the sweep again to measure them again", file=sys.stderr)
    return parts, not incomplete


def _select_rows(rows: pd.DataFrame, selections: Iterable[Selection]) -> pd.DataFrame:
    """Select the rows that selections are about.

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
    return rows.merge(subjects, on=list(subjects), how="inner")


def _keep_newest(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Keep, of each network and estimator, the rows of the newest origin, one for each key."""
    measured = [column for column in _MEASURED if column in rows]
    # Rows are in the order of the requests that ask for them, so that the last ones are the newest.
    newest = rows.groupby(measured, sort=False)[ORIGIN].transform("last")
    return rows[rows[ORIGIN] == newest].drop_duplicates(key, keep="last")


def _keep_one_version(
    rows: pd.DataFrame, table: str, requests: Sequence[Request], now: Code, folder: Path
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Keep, of each estimator, the rows that one version of the user's code has measured.

    That is the code as it is now, or where it has measured none the version whose rows were written last.

    Args:
        rows: of the table, with the number of the request in the column `_REQUEST`.
        table: its name.
        requests: all of the experiment, the newest last.
        now: digests of the files of the user's code.
        folder: of the experiment.

    Returns:
        These rows; and of each estimator that the code as it is now has not measured on all networks its name, and a
        sentence.
    """
    if not any(request.selections.get(table, Selection()).code for request in requests):
        return rows, []  # only bnlab's code has measured them, or earlier versions, which did not note it

    # Without estimators the code is noted under an empty name.
    bases = pd.Series("", rows.index)
    if "estimator" in rows:
        bases = rows["estimator"].map(lambda name: EstimatorName.parse(name).base)

    is_kept = pd.Series(True, rows.index)
    notes = []
    for base, part in rows.groupby(bases, sort=False):
        numbers = sorted(part[_REQUEST].unique())
        versions = {number: requests[number].selections[table].code.get(base, {}) for number in numbers}
        # Only bnlab's code has measured these rows, or no code was noted.
        if not any(versions.values()):
            continue
        # Rows without a note of their code are of an earlier bnlab, and no version is known to be theirs.
        current = [code for code in versions.values() if code and not _list_changed(code, now)]
        chosen = current[-1] if current else versions[numbers[-1]]
        chosen_numbers = [number for number in numbers if versions[number] == chosen]
        is_chosen = part[_REQUEST].isin(chosen_numbers)
        is_kept[part.index] = is_chosen

        has_some = {*part["run"][is_chosen]}
        last = part.groupby("run")[_REQUEST].max()
        # Without rows of the code as it is now all rows are outdated, also those that are shown.
        outdated = last[~last.index.isin(has_some)] if current else last
        left_out = len(last) - len(has_some)
        reason = _explain([versions[number] for number in outdated], now)
        # Where all rows are shown and no reason is known, there is nothing to warn of.
        if left_out or (reason and len(outdated)):
            commands = read_commands(folder, {requests[number].command for number in outdated})
            notes.append((base, _say_outdated(reason, left_out, bool(current), commands)))
    return rows[is_kept], notes


def _list_changed(code: Code, now: Code) -> list[str]:
    """List the files of a version of the user's code that are others now."""
    # Modules that this version did not read do not count. Those that are gone count as changed.
    return list_changed(code, {module: now[module] for module in code if module in now})


def _explain(versions: Sequence[Code], now: Code) -> str:
    """Explain why rows that were measured by these versions of the user's code are outdated; empty: nobody knows.

    That is so where the user's files cannot be found, as from another folder, and for rows of earlier versions of
    bnlab, which did not note the code.
    """
    changed = set[str]()
    for code in versions:
        # A version of which no file is found says nothing: its files lie in another folder, most likely.
        if not now.keys().isdisjoint(code):
            changed.update(_list_changed(code, now))
    if not changed:
        return ""
    return f"{say_changed(sorted(changed))} since they were measured"


def _say_outdated(reason: str, left_out: int, has_current: bool, commands: Iterable[str]) -> str:
    """Say which rows are outdated, and how they are measured again."""
    because = f" ({reason})" if reason else ""
    noun = "network" if left_out == 1 else "networks"
    networks = f"{left_out:,} {noun}"
    if has_current:
        text = f"rows of {networks} are of earlier code and left out{because}"
    elif left_out:
        text = f"rows are of earlier code{because}, and those of {networks}, of yet another version, are left out"
    else:
        text = f"rows are of earlier code{because}"
    return f"{text}; to measure them again: {'; '.join(commands) or 'sweep again'}"
