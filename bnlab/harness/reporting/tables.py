"""Tidy tables with fixed columns, types and keys, written in parts by jobs and put together when they are read.

results/<experiment>/parts/<table>/<run>-<digest>.parquet     what one job measured; never written by two jobs
results/<experiment>/tables/<table>.parquet                   all of them, one row for each key
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock

from bnlab.files import OtherVersion, digest, set_aside, write_whole
from bnlab.harness.errors import UserError
from bnlab.harness.schedule import lr_factor
from bnlab.harness.schema import (
    LOG,
    ORIGIN,
    TABLES,
    conform,
    empty_part,
    origin_columns,
    read_frame,
    read_part,
    write_frame,
    write_rows,
)

_AHEAD = 60 * 10**9  # nanoseconds by which the clocks of two machines may differ without a word


def begin_file_name(run: str) -> str:
    """What the names of files begin with that jobs on a network leave in an experiment's folder."""
    return f"{run.replace('/', '-')}-"


def write_part(folder: Path, name: str, run: str, settings: str, frame: pd.DataFrame) -> None:
    """What one job measured, under a name that tells the run and the settings of the measurement."""
    path = folder / "parts" / name / f"{begin_file_name(run)}{digest(settings, digits=10)}.parquet"
    write_rows(path, name, frame)


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables from their parts, the newest row for each key.

    Rows leave them once what measured them has changed: `ORIGIN`; it is said where none come in their place. Damaged
    parts are named and set aside.
    """
    frames = parts = {name: _read_parts(folder, name) for name in TABLES}
    _tell_of_clocks(folder, max((frame["written"].max() for frame in frames.values() if len(frame)), default=0))
    data = _find_image_settings(frames["runs"])
    for column in ORIGIN:
        frames = frames | _drop_outdated(column, {n: f for n, f in frames.items() if column in origin_columns(n)}, data)
    found = {name: _keep_newest(name, frame) for name, frame in frames.items()}
    left = {n: len(f.drop_duplicates(list(TABLES[n].key))) - len(found[n]) for n, f in parts.items()}
    _tell_of_outdated(folder, {name: count for name, count in left.items() if count})
    return found


def _tell_of_outdated(folder: Path, left: dict[str, int]) -> None:
    """Say so if rows have left tables, by name, with no newer ones in their place."""
    if left:
        rows = ", ".join(f"{count:,} of {name}" for name, count in left.items())
        print(
            f"{folder}/parts: left out are rows that were measured with earlier code, other images or another training "
            f"({rows})\n  run their sweeps again, or delete parts and run those that are wanted: what is "
            "trained and measured is kept",
            file=sys.stderr,
        )


def _tell_of_clocks(folder: Path, written: int) -> None:
    """Say so if the newest row is from the future: it would count as newer than what is measured next."""
    if written > time.time_ns() + _AHEAD:
        then = time.strftime("%Y-%m-%d %H:%M", time.localtime(written / 1e9))
        print(
            f"{folder}/parts: has rows that were written at {then}, by a clock that was ahead of this one; until then "
            "they count as the newest\n  delete parts and run the sweep again: what is trained and measured is kept",
            file=sys.stderr,
        )


def _read_parts(folder: Path, name: str) -> pd.DataFrame:
    """The rows of all parts of a table, with the columns of `ORIGIN`, the newest last."""
    frames = [empty_part(name)]
    for path in sorted((folder / "parts" / name).glob("*.parquet")):
        try:
            frames.append(_read_own_rows(name, path))
        except OtherVersion as error:
            print(f"{error}\n  left out; run the sweep again to measure it again", file=sys.stderr)
        except ValueError as error:
            set_aside(path, error, "run the sweep again to measure it again")
    return pd.concat(frames).sort_values("written", kind="stable", ignore_index=True)


def _keep_newest(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The table of these rows, the newest of which are last."""
    key = list(TABLES[name].key)
    frame = frame.drop_duplicates(key, keep="last")
    return conform(name, frame.sort_values(key, ignore_index=True))


def _read_own_rows(name: str, path: Path) -> pd.DataFrame:
    """The rows of a part; ValueError if it is a copy of another run's."""
    frame = read_part(name, path)
    for run in frame["run"].unique():
        if not path.name.startswith(begin_file_name(run)):
            raise ValueError(f"{path}: holds rows of run {run}")
    return frame


def _find_image_settings(runs: pd.DataFrame) -> dict[str, dict[str, str]]:
    """By run, the settings of its images, which networks of all seeds and batch sizes share, and of its test images."""
    found: dict[str, dict[str, str]] = {"image_settings": {}, "test_settings": {}}
    for run, text in zip(runs["run"], runs["settings"], strict=True):  # the newest is last
        settings = json.loads(text).get("data", {})
        kept = {key: value for key, value in settings.items() if key not in ("shift", "flip")}
        found["image_settings"][run] = json.dumps(kept)
        if kept.get("name") != "glyphs":  # all test images are taken, however many of the others, and at any size
            kept = {key: value for key, value in kept.items() if key not in ("images", "image_size")}
        found["test_settings"][run] = json.dumps(kept)
    return found


def _drop_outdated(
    column: str, frames: dict[str, pd.DataFrame], data: dict[str, dict[str, str]]
) -> dict[str, pd.DataFrame]:
    """Tables without the rows that differ from the newest of their group, in any table, in what measured them.

    Args:
        data: see `_find_image_settings`; a run that is still to get its row of `runs` is a group by itself.
    """
    group = [*ORIGIN[column].group, "all"]  # the last is the same in all rows: a group may have no other column
    columns = {name: list(frame) for name, frame in frames.items()}
    for key, known in data.items():
        frames = {n: f.assign(**{key: [known.get(run, run) for run in f["run"]]}) for n, f in frames.items()}
    frames = {name: frame.assign(all=0) for name, frame in frames.items()}
    if "split" in group:  # a table of the test images alone does not say so
        frames = {n: f if "split" in f else f.assign(split="test", shift="") for n, f in frames.items()}
    if "family" in group:
        family = {name: [label.partition("(")[0] for label in frame["estimator"]] for name, frame in frames.items()}
        frames = {name: frame.assign(family=family[name]) for name, frame in frames.items()}
    noted = [frame[[*group, column, "written"]].dropna(subset=column) for frame in frames.values()]
    last = pd.concat([frame.drop_duplicates([*group, column], keep="last") for frame in noted])
    last = last.sort_values("written", kind="stable").drop_duplicates(group, keep="last")
    newest = last.set_index(group)[column]
    kept = {}
    for name, frame in frames.items():
        is_newest = frame[column].to_numpy() == newest.reindex(pd.MultiIndex.from_frame(frame[group])).to_numpy()
        kept[name] = frame.loc[frame[column].isna() | is_newest, columns[name]]
    return kept


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

    def __init__(self, tables: dict[str, pd.DataFrame], results: Path) -> None:
        super().__init__(tables)
        self._results = results

    def __missing__(self, name: str) -> pd.DataFrame:
        if name != "log":
            raise KeyError(name)
        self[name] = frame = read_log(self._results, self["runs"])
        return frame


def read_log(results: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The table `log` of these networks.

    One that has been removed, or trained again to another end, or whose log is damaged is named and left out.
    """
    frames = [pd.DataFrame(columns=list(LOG.types))]
    for row in runs.to_dict("records"):
        path = results / "runs" / row["run"] / "log.parquet"
        try:
            frame = read_frame(path)[["step", "loss", "accuracy"]]
            _require_measured(path, frame, row)
        except (FileNotFoundError, ValueError, KeyError) as error:
            print(f"{row['run']}: left out of the table log ({error})", file=sys.stderr)
            continue
        factors = [lr_factor(row["schedule"], step - 1, row["steps"]) for step in frame["step"]]
        frames.append(frame.assign(run=row["run"], lr=row["lr_effective"] * np.array(factors)))
    log = pd.concat(frames, ignore_index=True)[list(LOG.types)]
    return pa.Table.from_pandas(log, LOG.schema, preserve_index=False).to_pandas()


def _require_measured(path: Path, log: pd.DataFrame, row: dict[Hashable, Any]) -> None:
    """ValueError if a log does not end as that of the finished network that was measured."""
    if row["status"] == "finished" and list(log["loss"][-1:]) != [row["final_loss"]]:
        raise ValueError(f"{path}: is of another training than the rows; run the sweep again to measure this one")


def load(name: str, results: str | Path = "results") -> Tables:
    """The tables of an experiment, as they are now: `load("momentum")["gaps"]`.

    results/README.md says what their columns mean. `log` has a row for each update of each network.

    Raises:
        UserError: nothing has been measured under this name, or there are reference tables, without the networks.
    """
    folder = Path(results) / name
    if not (folder / "parts").is_dir():
        reference_tables = sorted(folder.glob("*.parquet"))
        elsewhere = [f"results={results}"] * (str(results) != "results" and not reference_tables)
        words = [f"experiment={name}"] * (name != "adhoc") + elsewhere
        command = shlex.join(["python", "-m", "experiments.sweep", *words])
        if reference_tables:
            raise UserError(
                f"{folder}/ has tables without the networks; read them one by one: "
                f"pandas.read_parquet({str(reference_tables[0])!r}), or make them again: {command}"
            )
        raise UserError(f"no results for {name!r} in {results}/; run: {command}")
    return Tables(assemble(folder), Path(results))
