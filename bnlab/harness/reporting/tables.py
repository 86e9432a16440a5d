"""Tidy tables with fixed columns, types and keys, written in parts by jobs and put together when they are read.

results/<experiment>/parts/<table>/<run>-<digest>.parquet     what one job measured; never written by two jobs
results/<experiment>/tables/<table>.parquet                   all of them, one row for each key
"""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from bnlab.files import Unreadable, digest, set_aside, write_whole
from bnlab.harness.errors import UserError
from bnlab.harness.schedule import lr_factor
from bnlab.harness.schema import LOG, TABLES, conform, empty, read_frame, write_frame

_MEASURED = ("run", "estimator", "split", "shift")  # rows that agree in these are measured from one origin


def begin_file_name(run: str) -> str:
    """What the names of files begin with that jobs on a network leave in an experiment's folder."""
    return f"{run.replace('/', '-')}-"


def part_path(folder: Path, name: str, run: str, settings: str) -> Path:
    """Where a job leaves its rows of a table: the name tells the run and the settings of the measurement."""
    return folder / "parts" / name / f"{begin_file_name(run)}{digest(settings, digits=10)}.parquet"


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables from their parts: of each network and estimator the rows of the newest origin, one for each key.

    Unreadable parts are named and set aside.
    """
    found = {}
    for name, table in TABLES.items():
        parts = [empty(table.part)]
        for path in sorted((folder / "parts" / name).glob("*.parquet")):
            try:
                parts.append(read_frame(path, table.part))
            except Unreadable as error:
                set_aside(path, error, "run the sweep again to measure it again")
        rows = pd.concat(parts).sort_values("written", kind="stable", ignore_index=True)
        group = rows.groupby([column for column in _MEASURED if column in rows], sort=False)
        rows = rows[rows["origin"] == group["origin"].transform("last")]
        key = list(table.key)
        found[name] = conform(rows.drop_duplicates(key, keep="last").sort_values(key), table.schema)
    return found


def write_tables(folder: Path, csv: bool = False) -> dict[str, pd.DataFrame]:
    """Put every table together from its parts and write it; safe while other sweeps write parts."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        found = assemble(folder)
        for name, frame in found.items():
            path = folder / "tables" / f"{name}.parquet"
            write_frame(path, frame, TABLES[name].schema)
            if csv or path.with_suffix(".csv").exists():  # an earlier one would be of other rows
                write_whole(path.with_suffix(".csv"), partial(frame.to_csv, index=False))
    return found


class Tables(dict[str, pd.DataFrame]):
    """The tables of an experiment by name; `log`, which may be large, is read when it is asked for first."""

    def __init__(self, tables: dict[str, pd.DataFrame], runs: Path) -> None:
        super().__init__(tables)
        self._runs = runs

    def __missing__(self, name: str) -> pd.DataFrame:
        if name != "log":
            raise KeyError(name)
        self[name] = frame = _read_log(self._runs, self["runs"])
        return frame


def _read_log(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The table `log` of these networks; those whose logs are not there any more are named and left out."""
    if not folder.is_dir():
        raise UserError(f"log: there are no networks in {folder}/, as with reference tables; sweep to train them")
    frames = [empty(LOG.schema)]
    for row in runs.to_dict("records"):
        try:
            frame = read_frame(folder / row["run"] / "log.parquet")
        except Unreadable as error:
            print(f"{row['run']}: left out of the table log ({error})", file=sys.stderr)
            continue
        factors = [lr_factor(row["schedule"], step - 1, row["steps"]) for step in frame["step"]]
        frames.append(frame.assign(run=row["run"], lr=row["lr_effective"] * np.array(factors)))
    return conform(pd.concat(frames, ignore_index=True), LOG.schema)


def load(name: str, results: str | Path = "results") -> Tables:
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `log` has a row for each update of each network. Reference tables,
    `load("momentum", "results/reference")`, come without networks and have none.

    Raises:
        UserError: nothing has been measured under this name.
    """
    folder = Path(results) / name
    if (folder / "parts").is_dir():
        return Tables(assemble(folder), Path(results) / "runs")
    if (folder / "tables").is_dir():
        paths = {key: folder / "tables" / f"{key}.parquet" for key in TABLES}
        found = {key: read_frame(path, TABLES[key].schema) for key, path in paths.items() if path.exists()}
        return Tables({key: empty(table.schema) for key, table in TABLES.items()} | found, Path(results) / "runs")
    words = [f"experiment={name}"] * (name != "adhoc") + [f"results={results}"] * (str(results) != "results")
    command = shlex.join(["python", "-m", "experiments.sweep", *words])
    raise UserError(f"no results for {name!r} in {results}/; run: {command}")
