"""Tidy tables with fixed columns, types and keys, written in parts by jobs and put together when they are read.

results/<experiment>/parts/<table>/<run>-<digest>.parquet     what one job measured; never written by two jobs
results/<experiment>/tables/<table>.parquet                   all of them, one row for each key
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from bnlab.harness.errors import UserError
from bnlab.harness.training import lr_factor
from bnlab.storage import OtherVersion, set_aside, write_whole


@dataclass(frozen=True)
class Table:
    """Columns with their types; `key` is what a row is found by (`momentum` is null where it has no meaning)."""

    key: tuple[str, ...]
    types: dict[str, pa.DataType]
    later: tuple[str, ...] = ()  # columns that files of earlier versions lack: null there

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(list(self.types.items()))


_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_STATISTICS = {"run": _TEXT, "step": _INT, "estimator": _TEXT, "momentum": _REAL, "statistics_split": _TEXT}

# Of `runs`, by their names in the configuration where the older columns have none.
_SETTINGS = {
    "data.images": _INT,
    "data.classes": _INT,
    "data.difficulty": _TEXT,
    "data.fonts": _TEXT,
    "data.test_fonts": _TEXT,
    "data.image_size": _INT,
    "data.shift": _INT,
    "data.flip": _BOOL,
    "model.depth": _INT,
    "model.width": _INT,
    "model.pool_every": _INT,
    "lr_effective": _REAL,
    "last_step": _INT,
}

# results/README.md says what each column means.
TABLES = {
    "runs": Table(
        ("run",),
        dict.fromkeys(("run",), _TEXT)
        | {
            "seed": _INT,
            "data": _TEXT,
            "model": _TEXT,
            "norm": _TEXT,
            "batch_size": _INT,
            "norm_batch_size": _INT,
        }
        | {"optimizer": _TEXT, "lr": _REAL, "lr_scaling": _TEXT, "sgd_momentum": _REAL, "weight_decay": _REAL}
        | {"label_smoothing": _REAL, "schedule": _TEXT, "epochs": _REAL, "steps": _INT, "status": _TEXT}
        | {"train_seconds": _REAL, "final_loss": _REAL, "settings": _TEXT}
        | {"versions": _TEXT, "device": _TEXT, "threads": _INT}
        | _SETTINGS,
        later=tuple(_SETTINGS),
    ),
    "gaps": Table(
        (*_STATISTICS, "layer"),
        _STATISTICS
        | {
            "layer": _TEXT,
            "epoch": _REAL,
            "depth": _INT,
            "channels": _INT,
            "mean_gap": _REAL,
            "var_gap": _REAL,
        }
        | {"kl": _REAL, "tid_mean": _REAL, "tid_std": _REAL},
    ),
    "evaluations": Table(
        (*_STATISTICS, "split", "shift"),
        _STATISTICS
        | {"split": _TEXT, "shift": _TEXT, "epoch": _REAL, "images": _INT, "stat_images": _INT, "loss": _REAL}
        | {"accuracy": _REAL, "ece": _REAL, "disagreement": _REAL, "logit_gap": _REAL},
    ),
    "drift": Table(
        ("run", "step", "layer"),
        {"run": _TEXT, "step": _INT, "layer": _TEXT, "epoch": _REAL, "depth": _INT, "channels": _INT, "window": _INT}
        | {"mean_level": _REAL, "mean_noise": _REAL, "mean_drift": _REAL, "var_noise": _REAL, "var_drift": _REAL},
    ),
}

LOG = Table(("run", "step"), {"run": _TEXT, "step": _INT, "loss": _REAL, "accuracy": _REAL, "lr": _REAL})
"""The table `log`, which is put together from the networks' own files when it is asked for."""


class Origin(NamedTuple):
    """A column of measured parts that is not one of the table's: which code or data the row was measured with."""

    type: pa.DataType
    group: tuple[str, ...]  # rows that agree in these columns count only if they have the group's newest value
    before: Any  # what rows had before the column was written; None: not known, counts with any value


ORIGIN = {
    "version": Origin(_INT, (), 2),  # `measurements.frozen.VERSION`
    "source": Origin(_TEXT, ("estimator",), ""),  # digest of an own estimator's code
    "test_images": Origin(_TEXT, ("run", "shift"), None),  # their digest
    "training": Origin(_TEXT, ("run",), None),  # `Run.training`: a network that is trained again may become another
}


def origin_columns(name: str) -> dict[str, Origin]:
    """Those of `ORIGIN` that parts of the table have."""
    types = TABLES[name].types
    return {column: o for column, o in ORIGIN.items() if {"step", *o.group} <= types.keys()}


def part_schema(name: str) -> pa.Schema:
    """Columns and types of the table's parts."""
    types = {column: origin.type for column, origin in origin_columns(name).items()}
    return pa.schema([*TABLES[name].types.items(), *types.items()])


def empty_part(name: str) -> pd.DataFrame:
    """A part without rows."""
    return part_schema(name).empty_table().to_pandas()


def conform_part(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with exactly the columns and types of the table's parts; KeyError if one is missing."""
    schema = part_schema(name)
    return pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False).to_pandas()


def conform(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with exactly the columns and types of the table; a missing column is an error of ours (KeyError)."""
    table = TABLES[name]
    return pa.Table.from_pandas(frame[list(table.types)], table.schema, preserve_index=False).to_pandas()


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema | None = None) -> None:
    """Write a parquet file, whole or not at all, with checksums."""
    # Without pandas' own description of the columns, which no checksum covers.
    table = pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(None)
    write_whole(path, lambda beside: pq.write_table(table, beside, write_page_checksum=True))


def read_frame(path: Path) -> pd.DataFrame:
    """Read a parquet file; ValueError if it is damaged, FileNotFoundError if it is missing."""
    try:
        with path.open("rb") as file:
            return pq.ParquetFile(file, page_checksum_verification=True).read().to_pandas()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"{path}: damaged or not a parquet file ({str(error).splitlines()[0]})") from error


def read_table(name: str, path: Path) -> pd.DataFrame:
    """Read rows of a table; ValueError if the file is damaged, OtherVersion if it has other columns."""
    return conform(name, read_part(name, path))


def read_part(name: str, path: Path) -> pd.DataFrame:
    """`read_table` with the columns of `ORIGIN`."""
    frame = read_frame(path)
    before = dict.fromkeys(TABLES[name].later) | {c: origin.before for c, origin in origin_columns(name).items()}
    for column, value in before.items():
        if column not in frame:
            frame[column] = value
    try:
        return conform_part(name, frame)
    except (KeyError, pa.ArrowException) as error:
        raise OtherVersion(f"{path}: not of this version ({str(error).splitlines()[0]})") from error


def empty(name: str) -> pd.DataFrame:
    """The table without rows."""
    return TABLES[name].schema.empty_table().to_pandas()


def digest(settings: str) -> str:
    """Ten hexadecimal digits that name the settings of a measurement."""
    return hashlib.sha256(settings.encode()).hexdigest()[:10]


def write_part(folder: Path, name: str, run: str, settings: str, frame: pd.DataFrame) -> None:
    """What one job measured, under a name that tells the run and the settings of the measurement."""
    path = folder / "parts" / name / f"{run.replace('/', '-')}-{digest(settings)}.parquet"
    write_frame(path, conform_part(name, frame), part_schema(name))


def assemble(folder: Path, name: str) -> pd.DataFrame:
    """All parts of a table, the newest row for each key.

    Rows leave it once what measured them has changed: `ORIGIN`. Damaged parts are named and set aside.
    """
    parts = sorted((folder / "parts" / name).glob("*.parquet"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    frames = []
    for path in parts:
        try:
            frames.append(read_part(name, path))
        except OtherVersion as error:
            print(f"{error}\n  left out; run the sweep again to measure it again", file=sys.stderr)
        except ValueError as error:
            set_aside(path, error, "run the sweep again to measure it again")
    table = TABLES[name]
    if not frames:
        return empty(name)
    frame = _without_outdated(name, pd.concat(frames, ignore_index=True))
    frame = frame.drop_duplicates(list(table.key), keep="last")
    return conform(name, frame.sort_values(list(table.key), ignore_index=True))


def _without_outdated(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows, the newest last, without those that differ from the newest of their group in what measured them."""
    if frame.empty:
        return frame
    for column, (_, group, _) in origin_columns(name).items():
        newest = frame.groupby(list(group))[column].transform("last") if group else frame[column].iloc[-1]
        frame = frame[frame[column].isna() | (frame[column] == newest)]
    return frame


def write_tables(folder: Path, csv: bool = False) -> dict[str, pd.DataFrame]:
    """Put every table together from its parts and write it; safe while other sweeps write parts."""
    found = {}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tables.lock"):
        for name in TABLES:
            found[name] = frame = assemble(folder, name)
            path = folder / "tables" / f"{name}.parquet"
            write_frame(path, frame, TABLES[name].schema)
            if csv:
                write_whole(path.with_suffix(".csv"), partial(frame.to_csv, index=False))
    return found


class Tables(dict[str, pd.DataFrame]):
    """The tables of an experiment by name; `log`, which may be large, is read when it is asked for first."""

    def __init__(self, tables: dict[str, pd.DataFrame], results: Path) -> None:
        super().__init__(tables)
        self._results = results

    def __missing__(self, name: str) -> pd.DataFrame:
        if name != "log":
            raise KeyError(name)
        self[name] = frame = read_log(self._results, self["runs"])
        return frame


def read_log(results: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The table `log` of these networks; one that has been removed or whose log is damaged is named and left out."""
    frames = [pd.DataFrame(columns=list(LOG.types))]
    for row in runs.to_dict("records"):
        path = results / "runs" / row["run"] / "log.parquet"
        try:
            frame = read_frame(path)[["step", "loss", "accuracy"]]
        except (FileNotFoundError, ValueError, KeyError) as error:
            print(f"{row['run']}: left out of the table log ({error})", file=sys.stderr)
            continue
        factors = [lr_factor(row["schedule"], step - 1, row["steps"]) for step in frame["step"]]
        frames.append(frame.assign(run=row["run"], lr=row["lr_effective"] * np.array(factors)))
    log = pd.concat(frames, ignore_index=True)[list(LOG.types)]
    return pa.Table.from_pandas(log, LOG.schema, preserve_index=False).to_pandas()


def load(name: str, results: str | Path = "results") -> Tables:
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `log` has a row for each update of each network.

    Raises:
        UserError: nothing has been measured under this name.
    """
    folder = Path(results) / name
    if not (folder / "parts").is_dir():
        command = "python -m experiments.sweep" + ("" if name == "adhoc" else f" experiment={name}")
        raise UserError(f"no results for {name!r} in {results}/; run: {command}")
    return Tables({table: assemble(folder, table) for table in TABLES}, Path(results))
