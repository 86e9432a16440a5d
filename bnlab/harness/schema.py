"""The tables' columns, keys and types, and parquet files that have them: what measurements write and reports read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnlab.files import OtherVersion, write_whole


@dataclass(frozen=True)
class Table:
    """What a table consists of.

    Attributes:
        key: the columns in which no two rows agree; `momentum` is null where it has no meaning.
        types: of all columns, in order.
        later: columns that files of earlier versions lack: null there.
        predicts: whether all rows are of predictions of the network's test images; columns `split` and `shift` say so
            of each row, where there are others.
    """

    key: tuple[str, ...]
    types: dict[str, pa.DataType]
    later: tuple[str, ...] = ()
    predicts: bool = False

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(list(self.types.items()))


_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_STATISTICS = {"run": _TEXT, "step": _INT, "estimator": _TEXT, "momentum": _REAL, "statistics_split": _TEXT}

# Columns of `runs` that earlier files lack; settings have their names in the configuration.
_LATER = {
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
# Columns of `runs` that earlier files have under another name only; the table has both.
EARLIER_NAMES = {
    **{f"{key}.name": key for key in ("data", "model", "norm", "optimizer")},
    **{f"optimizer.{key}": key for key in ("lr", "lr_scaling", "weight_decay", "label_smoothing", "schedule")},
    "optimizer.momentum": "sgd_momentum",
}

# results/README.md says what each column means.
TABLES = {
    "runs": Table(
        ("run",),
        {
            "run": _TEXT, "seed": _INT, "data": _TEXT, "model": _TEXT, "norm": _TEXT, "batch_size": _INT,
            "norm_batch_size": _INT, "optimizer": _TEXT, "lr": _REAL, "lr_scaling": _TEXT, "sgd_momentum": _REAL,
            "weight_decay": _REAL, "label_smoothing": _REAL, "schedule": _TEXT, "epochs": _REAL, "steps": _INT,
            "status": _TEXT, "train_seconds": _REAL, "final_loss": _REAL, "settings": _TEXT, "versions": _TEXT,
            "device": _TEXT, "threads": _INT, **_LATER,
        },
        later=tuple(_LATER),
    ),
    "gaps": Table(
        (*_STATISTICS, "layer"),
        {
            **_STATISTICS, "layer": _TEXT, "epoch": _REAL, "depth": _INT, "channels": _INT, "mean_gap": _REAL,
            "var_gap": _REAL, "kl": _REAL, "tid_mean": _REAL, "tid_std": _REAL, "var_ratio": _REAL,
        },
        later=("var_ratio",),
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
    "precision": Table(
        ("run", "step", "layer"),
        {
            "run": _TEXT, "step": _INT, "layer": _TEXT, "epoch": _REAL, "depth": _INT, "channels": _INT, "images": _INT,
            "values": _INT, "mean_error": _REAL, "var_error": _REAL,
        },
    ),
    "traces": Table(
        (*_STATISTICS, "layer", "channel"),
        {
            **_STATISTICS, "layer": _TEXT, "channel": _INT, "epoch": _REAL, "depth": _INT, "mean": _REAL, "var": _REAL,
        },
    ),
    "histograms": Table(
        (*_STATISTICS, "layer", "left"),
        {
            **_STATISTICS, "layer": _TEXT, "left": _REAL, "epoch": _REAL, "depth": _INT, "right": _REAL, "share": _REAL,
        },
    ),
    "doses": Table(
        ("run", "step", "layer", "moment", "dose"),
        {
            "run": _TEXT, "step": _INT, "layer": _TEXT, "moment": _TEXT, "dose": _REAL, "epoch": _REAL, "depth": _INT,
            "accuracy": _REAL, "accuracy_lost": _REAL, "disagreement": _REAL, "logit_gap": _REAL,
        },
        predicts=True,
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
    "choices": Table(
        ("run", "step", "layer", "statistic"),
        {
            "run": _TEXT, "step": _INT, "layer": _TEXT, "statistic": _TEXT, "epoch": _REAL, "depth": _INT,
            "channels": _INT, "chosen": _REAL,
        },
    ),
    "decomposition": Table(
        (*_STATISTICS, "layer", "statistic", "term"),
        {
            **_STATISTICS, "layer": _TEXT, "statistic": _TEXT, "term": _TEXT, "epoch": _REAL, "depth": _INT,
            "channels": _INT, "contribution": _REAL, "square": _REAL,
        },
    ),
}  # fmt: skip

LOG = Table(("run", "step"), {"run": _TEXT, "step": _INT, "loss": _REAL, "accuracy": _REAL, "lr": _REAL})
"""The table `log`, which is put together from the networks' own files when it is asked for."""


class Origin(NamedTuple):
    """A column of measured parts that is not one of the table's: which code or data the row was measured with.

    Rows of a group count only if they have its newest value.
    """

    type: pa.DataType
    group: tuple[str, ...]  # columns in which rows agree; `image_settings` are those of their networks, `test_settings`
    # those of them that make the test images, `family` is the estimator without its parameters
    before: Any  # what rows had before the column was written; None: not known, counts with any value


ORIGIN = {
    "version": Origin(_INT, (), 2),  # `measurements.frozen.VERSION`
    "source": Origin(_TEXT, ("estimator",), ""),  # digest of an own estimator's code, and of what it makes of batches
    "code": Origin(_TEXT, ("family",), None),  # digest of an own estimator's code, whatever its parameters
    "test_images": Origin(_TEXT, ("image_settings", "split", "shift"), None),  # digest of the images that are predicted
    "test_set": Origin(_TEXT, ("test_settings", "split"), None),  # digest of the files of test images, under any shift
    "training_set": Origin(_TEXT, ("image_settings",), None),  # digest of the images that the network was trained on
    "training": Origin(_TEXT, ("run",), None),  # `Run.training`: a network that is trained again may become another
}


def origin_columns(name: str) -> dict[str, Origin]:
    """Those of `ORIGIN` that parts of the table have."""
    known = {*TABLES[name].types, "image_settings", "test_settings"}  # which the table `runs` says of each
    known |= {"family"} if "estimator" in known else set()
    known |= {"split", "shift"} if TABLES[name].predicts else set()
    measured = "step" in known  # a run is no measurement, but of a training as well
    wanted = ORIGIN if measured else ("training", "training_set")
    return {column: o for column, o in ORIGIN.items() if {*o.group} <= known and column in wanted}


def part_schema(name: str) -> pa.Schema:
    """Columns and types of the table's parts: the table's, those of `ORIGIN`, and `written`, when, in ns since 1970."""
    types = {column: origin.type for column, origin in origin_columns(name).items()}
    return pa.schema([*TABLES[name].types.items(), *types.items(), ("written", _INT)])


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


def write_rows(path: Path, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Write rows of a table with the columns of its parts, as of now; they, as written."""
    frame = conform_part(name, frame.assign(written=time.time_ns()))  # the file's own time changes when it is copied
    write_frame(path, frame, part_schema(name))
    return frame


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema | None = None) -> None:
    """Write a parquet file, whole or not at all, with checksums."""
    # Without pandas' own description of the columns, which no checksum covers.
    table = pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(None)
    write_whole(path, lambda beside: pq.write_table(table, beside, write_page_checksum=True))


def read_frame(path: Path) -> pd.DataFrame:
    """Read a parquet file; ValueError if it is damaged, OSError if it is missing or cannot be read."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    with path.open("rb") as file:  # outside of what follows: a file that cannot be read is not damaged
        try:
            return pq.ParquetFile(file, page_checksum_verification=True).read().to_pandas()
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise ValueError(f"{path}: damaged or not a parquet file ({str(error).splitlines()[0]})") from error


def read_part(name: str, path: Path) -> pd.DataFrame:
    """Read rows of a table, with the columns of `ORIGIN` and `written`, which is the file's time where it is not noted.

    Raises:
        ValueError: the file is damaged; OtherVersion: it has other columns.
    """
    frame = read_frame(path)
    before = {"written": path.stat().st_mtime_ns} | dict.fromkeys(TABLES[name].later)
    before |= {column: origin.before for column, origin in origin_columns(name).items()}
    unknown = [column for column in frame if column not in part_schema(name).names]
    if unknown:  # damage in a name too: the column would seem to be missing
        raise OtherVersion(f"{path}: not of this version (there is no column {unknown[0]!r})")
    for column, value in before.items():
        if column not in frame:
            frame[column] = frame.get(EARLIER_NAMES.get(column, column), value)
    try:
        return conform_part(name, frame)
    except (KeyError, pa.ArrowException) as error:
        raise OtherVersion(f"{path}: not of this version ({str(error).splitlines()[0]})") from error
