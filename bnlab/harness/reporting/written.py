"""Tables that have been written, with the requests that they were put together from: newer ones alone are read again.

results/<experiment>/tables/<table>.parquet, made_from.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bnlab.files import Unreadable, reading, write_text
from bnlab.harness.requests import find_run
from bnlab.harness.schema import read_frame, read_schema, write_frame

Stamps = Mapping[str, int]
"""The name of each request's file → when it was last written, in ns since 1970."""


@dataclass(frozen=True)
class Written:
    """Tables as they were written.

    Attributes:
        tables: each by its name, with the schema of its file.
        stamps: of the requests that they hold all rows of.
    """

    tables: Mapping[str, tuple[pd.DataFrame, pa.Schema]] = field(default_factory=dict)
    stamps: Stamps = field(default_factory=dict)

    def list_changed(self, stamps: Stamps) -> set[str]:
        """List the networks of which there are requests that are not in these tables."""
        return {find_run(name) for name, stamp in stamps.items() if self.stamps.get(name) != stamp}


def read_stamps(folder: Path) -> dict[str, int]:
    """Read when each request of an experiment was written."""
    requests = folder / "requests"
    if not requests.is_dir():
        return {}
    with os.scandir(requests) as entries:
        return {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".json")}


def read_written(folder: Path, stamps: Stamps) -> Written:
    """Read the tables of an experiment; none if they cannot be trusted, so that all are put together anew.

    That is where somebody else has written one of them, or a request that they hold rows of has been removed.
    """
    try:
        with reading(_find_record(folder)):
            record = json.loads(_find_record(folder).read_text(encoding="utf-8"))
        if not record["requests"].keys() <= stamps.keys():
            return Written()

        tables = {}
        for name, stamp in record["tables"].items():
            path = find_table(folder, name)
            tables[name] = (read_frame(path), read_schema(path))
            if _read_stamp(path) != stamp:
                return Written()
    except Unreadable:  # or there is none
        return Written()
    return Written(tables, record["requests"])


def write_all(folder: Path, written: Written) -> None:
    """Write tables, and what they were put together from, which comes last."""
    files = {}
    for name, (frame, schema) in written.tables.items():
        path = find_table(folder, name)
        write_frame(path, frame, schema)
        files[name] = _read_stamp(path)
    write_text(_find_record(folder), json.dumps({"tables": files, "requests": written.stamps}))


def leave_out(stamps: Stamps, runs: Iterable[str]) -> Stamps:
    """Leave out the requests of some networks: they are read again the next time."""
    left_out = {*runs}
    return {name: stamp for name, stamp in stamps.items() if find_run(name) not in left_out}


def find_table(folder: Path, name: str) -> Path:
    """Where a table is written."""
    return folder / "tables" / f"{name}.parquet"


def _find_record(folder: Path) -> Path:
    return folder / "tables" / "made_from.json"


def _read_stamp(path: Path) -> int:
    with reading(path):
        return path.stat().st_mtime_ns
