"""Tidy tables with fixed columns, types and keys, written in parts by jobs and put together when they are read.

results/<experiment>/parts/<table>/<run>-<digest>.parquet     what one job measured; never written by two jobs
results/<experiment>/tables/<table>.parquet                   all of them, one row for each key
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import pandas as pd
from filelock import FileLock

from bnlab.files import Unreadable, digest, set_aside, write_whole
from bnlab.harness.errors import UserError
from bnlab.harness.schema import TABLES, conform, empty, read_frame, write_frame

_MEASURED = ("run", "estimator", "split", "shift")  # rows that agree in these are measured from one origin


def part_path(folder: Path, name: str, run: str, settings: str) -> Path:
    """Where a job leaves its rows of a table: the name tells the run and the settings of the measurement."""
    return folder / "parts" / name / f"{run.replace('/', '-')}-{digest(settings, digits=10)}.parquet"


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables from their parts: of each network and estimator the rows of the newest origin, one for each key.

    Unreadable parts are named and set aside.
    """
    found = {}
    for name, table in TABLES.items():
        parts = [empty(table.part)]
        for path in sorted((folder / "parts" / name).glob("*.parquet")):
            try:
                parts.append(read_frame(path, table.part, table.is_open))
            except Unreadable as error:
                set_aside(path, error, "run the sweep again to measure it again")
        rows = pd.concat(parts).sort_values("written", kind="stable", ignore_index=True)
        group = rows.groupby([column for column in _MEASURED if column in rows], sort=False)
        rows = rows[rows["origin"] == group["origin"].transform("last")]
        key = list(table.key)
        rows = rows.drop_duplicates(key, keep="last").sort_values(key).drop(columns=["origin", "written"])
        found[name] = conform(rows, table.schema, table.is_open)
    return found


def write_tables(folder: Path, csv: bool = False) -> dict[str, pd.DataFrame]:
    """Put every table together from its parts and write it; safe while other sweeps write parts."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        found = assemble(folder)
        for name, frame in found.items():
            path = folder / "tables" / f"{name}.parquet"
            write_frame(path, frame, TABLES[name].schema, TABLES[name].is_open)
            if csv or path.with_suffix(".csv").exists():  # an earlier one would be of other rows
                write_whole(path.with_suffix(".csv"), partial(frame.to_csv, index=False))
    return found


def load(name: str, results: str | Path = "results") -> dict[str, pd.DataFrame]:
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `load("momentum", "results/reference")` has the committed ones.

    Raises:
        UserError: nothing has been measured under this name.
    """
    folder = Path(results) / name
    if (folder / "parts").is_dir():
        return assemble(folder)
    if (folder / "tables").is_dir():
        return {path.stem: read_frame(path) for path in sorted((folder / "tables").glob("*.parquet"))}
    where = [] if str(results) == "results" else [f"results={results}"]
    command = shlex.join(["bnlab", "sweep", f"name={name}", *where])
    raise UserError(
        f"no results for {name!r} in {results}/; run: {command} with what is to be swept, or with experiment={name} "
        "where conf/experiment/ has it"
    )
