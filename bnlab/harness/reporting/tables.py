"""Tidy tables with fixed columns, types and keys, written in parts by jobs and put together when they are read.

results/<experiment>/parts/<table>/<run>-<digest>.parquet     what one job measured; never written by two jobs
results/<experiment>/tables/<table>.parquet                   all of them, one row for each key
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from bnlab.files import Unreadable, digest, set_aside, write_whole
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.schema import PART, conform, empty, read_frame, read_key, read_schema, write_frame

_MEASURED = ("run", "estimator", "split", "shift")  # rows that agree in these are measured from one origin


def part_path(folder: Path, name: str, run: str, settings: str) -> Path:
    """Where a job leaves its rows of a table: the name tells the run and the settings of the measurement."""
    return folder / "parts" / name / f"{run.replace('/', '-')}-{digest(settings, digits=10)}.parquet"


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables from their parts: of each network and estimator the rows of the newest origin, one for each key.

    Unreadable parts are named and set aside.
    """
    return {name: frame for name, (frame, _) in _assemble(folder).items()}


def _assemble(folder: Path) -> dict[str, tuple[pd.DataFrame, pa.Schema]]:
    """Tables, each with the schema of its files."""
    found = {}
    for part in sorted((folder / "parts").glob("*/")):
        schema = read_schema(sorted(part.glob("*.parquet")))
        if schema.names:
            found[part.name] = (_put_together(part, schema), _drop(schema, PART))
    return found


def _put_together(part: Path, schema: pa.Schema) -> pd.DataFrame:
    """All rows of a table whose parts lie in a folder."""
    parts = [empty(schema)]
    for path in sorted(part.glob("*.parquet")):
        try:
            parts.append(read_frame(path, schema))
        except Unreadable as error:
            set_aside(path, error, "run the sweep again to measure it again")

    rows = pd.concat(parts).sort_values("written", kind="stable", ignore_index=True)
    group = rows.groupby([column for column in _MEASURED if column in rows], sort=False)
    rows = rows[rows["origin"] == group["origin"].transform("last")]
    key = read_key(schema)
    rows = rows.drop_duplicates(key, keep="last").sort_values(key)
    return conform(rows.drop(columns=[*PART]), _drop(schema, PART))


def _drop(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """The schema without these columns."""
    for name in names:
        schema = schema.remove(schema.get_field_index(name))
    return schema


def write_tables(folder: Path, csv: bool = False) -> dict[str, pd.DataFrame]:
    """Put every table together from its parts and write it; safe while other sweeps write parts."""
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


def load(name: str, results: str | Path = "results") -> Tables:
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `load("momentum", "results/reference")` has the committed ones.

    Raises:
        UserError: nothing has been measured under this name.
    """
    folder = Path(results) / name
    if (folder / "parts").is_dir():
        return Tables(assemble(folder))
    if (folder / "tables").is_dir():
        return Tables({path.stem: read_frame(path) for path in sorted((folder / "tables").glob("*.parquet"))})
    where = [] if str(results) == "results" else [f"results={results}"]
    command = shlex.join(["bnlab", "sweep", f"name={name}", *where])
    raise UserError(
        f"no results for {name!r} in {results}/; run: {command} with what is to be swept, or with experiment={name} "
        "where conf/experiment/ has it"
    )
