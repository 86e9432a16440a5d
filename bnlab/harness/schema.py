"""The tables' columns, keys and types, and parquet files that have them: what measurements write and reports read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnlab.files import Unreadable, reading, write_whole


@dataclass(frozen=True)
class Table:
    """What a table consists of.

    Attributes:
        key: the columns in which no two rows agree; `momentum` is null where it has no meaning.
        types: of all columns, in order.
    """

    key: tuple[str, ...]
    types: dict[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(list(self.types.items()))

    @property
    def part(self) -> pa.Schema:
        """Of parts of the table, which say of each row what was measured, and when, in ns since 1970."""
        return pa.schema([*self.types.items(), ("origin", _TEXT), ("written", _INT)])


_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_STATISTICS = {"run": _TEXT, "step": _INT, "estimator": _TEXT, "momentum": _REAL, "statistics_split": _TEXT}

# Settings of the table `runs`, most under their names in the configuration; null where a network does not read them.
_SETTINGS = {
    "data.images": _INT, "data.classes": _INT, "data.difficulty": _TEXT, "data.fonts": _TEXT, "data.test_fonts": _TEXT,
    "data.image_size": _INT, "data.shift": _INT, "data.flip": _BOOL,
    "model.depth": _INT, "model.width": _INT, "model.pool_every": _INT,
    "lr_effective": _REAL, "last_step": _INT,
    "data.name": _TEXT, "model.name": _TEXT, "norm.name": _TEXT,
    "norm.batch_size": _INT, "norm.groups": _INT, "norm.momentum": _REAL, "norm.every_second": _TEXT,
    "optimizer.name": _TEXT, "optimizer.lr": _REAL, "optimizer.lr_scaling": _TEXT, "optimizer.momentum": _REAL,
    "optimizer.weight_decay": _REAL, "optimizer.label_smoothing": _REAL, "optimizer.schedule": _TEXT,
    "order": _TEXT, "freeze_at": _REAL, "freeze_with": _TEXT, "averaging": _TEXT,
}  # fmt: skip
SHORT_NAMES = {
    **{f"{key}.name": key for key in ("data", "model", "norm", "optimizer")},
    **{f"optimizer.{key}": key for key in ("lr", "lr_scaling", "weight_decay", "label_smoothing", "schedule")},
    "optimizer.momentum": "sgd_momentum",
}
"""Settings that the table `runs` has under a short name too."""

# results/README.md says what each column means.
TABLES = {
    "runs": Table(
        ("run",),
        {
            "run": _TEXT, "seed": _INT, "data": _TEXT, "model": _TEXT, "norm": _TEXT, "batch_size": _INT,
            "norm_batch_size": _INT, "optimizer": _TEXT, "lr": _REAL, "lr_scaling": _TEXT, "sgd_momentum": _REAL,
            "weight_decay": _REAL, "label_smoothing": _REAL, "schedule": _TEXT, "epochs": _REAL, "steps": _INT,
            "status": _TEXT, "train_seconds": _REAL, "final_loss": _REAL, "settings": _TEXT, "versions": _TEXT,
            "device": _TEXT, "threads": _INT, **_SETTINGS,
        },
    ),
    "gaps": Table(
        (*_STATISTICS, "layer"),
        {
            **_STATISTICS, "layer": _TEXT, "epoch": _REAL, "depth": _INT, "channels": _INT, "mean_gap": _REAL,
            "var_gap": _REAL, "kl": _REAL, "tid_mean": _REAL, "tid_std": _REAL, "var_ratio": _REAL,
        },
    ),
    "evaluations": Table(
        (*_STATISTICS, "split", "shift"),
        {
            **_STATISTICS, "split": _TEXT, "shift": _TEXT, "epoch": _REAL, "images": _INT, "stat_images": _INT,
            "loss": _REAL, "accuracy": _REAL, "ece": _REAL, "disagreement": _REAL, "logit_gap": _REAL,
        },
    ),
    "drift": Table(
        ("run", "step", "layer"),
        {
            "run": _TEXT, "step": _INT, "layer": _TEXT, "epoch": _REAL, "depth": _INT, "channels": _INT, "window": _INT,
            "mean_level": _REAL, "mean_noise": _REAL, "mean_drift": _REAL, "var_noise": _REAL, "var_drift": _REAL,
        },
    ),
    "traces": Table(
        (*_STATISTICS, "layer", "channel"),
        {
            **_STATISTICS, "layer": _TEXT, "channel": _INT, "epoch": _REAL, "depth": _INT, "mean": _REAL, "var": _REAL,
        },
    ),
    "doses": Table(
        ("run", "step", "layer", "moment", "dose"),
        {
            "run": _TEXT, "step": _INT, "layer": _TEXT, "moment": _TEXT, "dose": _REAL, "epoch": _REAL, "depth": _INT,
            "accuracy": _REAL, "accuracy_lost": _REAL, "disagreement": _REAL, "logit_gap": _REAL,
        },
    ),
    "counterexamples": Table(
        (*_STATISTICS, "case", "size"),
        {
            **_STATISTICS, "case": _TEXT, "size": _REAL, "epoch": _REAL, "batches": _INT, "error": _REAL,
        },
    ),
    "last_batches": Table(
        (*_STATISTICS, "layer", "last"),
        {
            **_STATISTICS, "layer": _TEXT, "last": _INT, "epoch": _REAL, "depth": _INT, "followed": _REAL,
            "moved": _REAL,
        },
    ),
    "within_epoch": Table(
        (*_STATISTICS, "layer", "last_batch", "position"),
        {
            **_STATISTICS, "layer": _TEXT, "last_batch": _TEXT, "position": _INT, "epoch": _REAL, "depth": _INT,
            "channels": _INT, "batches": _INT, "last_share": _REAL, "epochs": _INT, "noise": _REAL, "spread": _REAL,
        },
    ),
    "log": Table(("run", "step"), {"run": _TEXT, "step": _INT, "loss": _REAL, "accuracy": _REAL, "lr": _REAL}),
    "decomposition": Table(
        (*_STATISTICS, "layer", "statistic", "term"),
        {
            **_STATISTICS, "layer": _TEXT, "statistic": _TEXT, "term": _TEXT, "epoch": _REAL, "depth": _INT,
            "channels": _INT, "contribution": _REAL, "square": _REAL,
        },
    ),
}  # fmt: skip


def conform(frame: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """`frame` with exactly the schema's columns and types; KeyError if one is missing."""
    return pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False).to_pandas()


def empty(schema: pa.Schema) -> pd.DataFrame:
    """A frame without rows."""
    return schema.empty_table().to_pandas()


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema | None = None) -> None:
    """Write a parquet file, whole or not at all, small and with checksums."""
    table = pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(None)
    write_whole(path, lambda beside: pq.write_table(table, beside, compression="zstd", write_page_checksum=True))


def write_rows(path: Path, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Write rows of a table, with their `origin`, as of now; they, as written."""
    frame = conform(frame.assign(written=time.time_ns()), TABLES[name].part)
    write_frame(path, frame, TABLES[name].part)
    return frame


def read_frame(path: Path, schema: pa.Schema | None = None) -> pd.DataFrame:
    """Read a parquet file; Unreadable if it is missing, damaged, or has other columns than the schema."""
    with reading(path), path.open("rb") as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
        if schema is not None and set(table.column_names) != set(schema.names):
            raise Unreadable(f"{path}: cannot be read (has other columns than this version of bnlab)")
        return conform(table.to_pandas(), schema) if schema else table.to_pandas()
