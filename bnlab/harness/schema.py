"""The tables' columns, keys and types, and parquet files that have them: what measurements write and reports read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnlab.files import reading, write_whole


@dataclass(frozen=True)
class Table:
    """What a table consists of.

    Attributes:
        key: the columns in which no two rows agree; `momentum` is null where it has no meaning.
        types: of all columns, in order.
        is_open: whether rows may have further columns, as `runs` has the settings of a user's own functions.
    """

    key: tuple[str, ...]
    types: dict[str, pa.DataType]
    is_open: bool = False

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(list(self.types.items()))

    @property
    def part(self) -> pa.Schema:
        """Of parts of the table, which say of each row what was measured, and when, in ns since 1970."""
        return pa.schema([*self.types.items(), ("origin", _TEXT), ("written", _INT)])


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_TEXTS = (
    "run data model norm optimizer lr_scaling schedule status settings versions device data.difficulty data.fonts "
    "data.test_fonts data.name model.name norm.name norm.every_second optimizer.name optimizer.lr_scaling "
    "optimizer.schedule order freeze_with averaging estimator statistics_split layer split shift moment case "
    "last_batch statistic term"
)
_INTS = (
    "seed batch_size norm_batch_size steps threads data.images data.classes data.shift model.depth "
    "model.width model.pool_every last_step norm.batch_size norm.groups step depth channels images stat_images window "
    "channel batches last position"
)
# Of the columns that are not real numbers.
_TYPES = {
    **dict.fromkeys(_TEXTS.split(), _TEXT),
    **dict.fromkeys(_INTS.split(), _INT),
    "data.flip": pa.bool_(),
    "data.copies": pa.bool_(),
}
SHORT_NAMES = {
    **{f"{key}.name": key for key in ("data", "model", "norm", "optimizer")},
    **{f"optimizer.{key}": key for key in ("lr", "lr_scaling", "weight_decay", "label_smoothing", "schedule")},
    "optimizer.momentum": "sgd_momentum",
}
"""Settings that the table `runs` has under a short name too."""
_KEY = "run step estimator momentum statistics_split"


def _build(key: str, others: str, is_open: bool = False, **types: pa.DataType) -> Table:
    """A table of these columns; `types` of those that have another one here than elsewhere."""
    columns = f"{key} {others}".split()
    return Table(tuple(key.split()), {column: {**_TYPES, **types}.get(column, _REAL) for column in columns}, is_open)


# results/README.md says what each column means; settings are null where a network does not read them.
TABLES = {
    "runs": _build(
        "run",
        "seed data model norm batch_size norm_batch_size optimizer lr lr_scaling sgd_momentum weight_decay "
        "label_smoothing schedule epochs steps status train_seconds final_loss settings versions device threads "
        "data.images data.classes data.difficulty data.fonts data.test_fonts data.shift data.flip data.copies "
        "model.depth model.width model.pool_every lr_effective last_step data.name model.name norm.name "
        "norm.batch_size norm.groups norm.momentum norm.every_second optimizer.name optimizer.lr optimizer.lr_scaling "
        "optimizer.momentum optimizer.weight_decay optimizer.label_smoothing optimizer.schedule order freeze_at "
        "freeze_with averaging",
        is_open=True,
    ),
    "gaps": _build(f"{_KEY} layer", "epoch depth channels mean_gap var_gap kl tid_mean tid_std var_ratio"),
    "evaluations": _build(f"{_KEY} split shift", "epoch images stat_images loss accuracy ece disagreement logit_gap"),
    "drift": _build(
        "run step layer", "epoch depth channels window mean_level mean_noise mean_drift var_noise var_drift"
    ),
    "traces": _build(f"{_KEY} layer channel", "epoch depth mean var"),
    "doses": _build("run step layer moment dose", "epoch depth accuracy accuracy_lost disagreement logit_gap"),
    "counterexamples": _build(f"{_KEY} case size", "epoch batches error"),
    "last_batches": _build(f"{_KEY} layer last", "epoch depth followed moved"),
    "within_epoch": _build(
        f"{_KEY} layer last_batch position", "epoch depth channels batches last_share epochs noise spread", epochs=_INT
    ),
    "log": _build("run step", "loss accuracy lr"),
    "decomposition": _build(f"{_KEY} layer statistic term", "epoch depth channels contribution square"),
}


def conform(frame: pd.DataFrame, schema: pa.Schema, is_open: bool = False) -> pd.DataFrame:
    """`frame` with exactly the schema's columns and types, and the further columns of an open table.

    Raises KeyError if a column of the schema is missing.
    """
    if is_open:
        schema = widen(schema, frame)
        texts = [field.name for field in schema if field.type == _TEXT]
        frame = frame.assign(**{name: _write_out(frame[name]) for name in texts})
    return pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False).to_pandas()


def widen(schema: pa.Schema, frame: pd.DataFrame) -> pa.Schema:
    """The schema of an open table's rows: its columns, and behind them the further ones that the rows have.

    A column of which a value is not of its type is text, as where a user's own model takes a word for `model.width`.
    """
    expected = {field.name: field.type for field in schema}
    columns = [*expected, *(column for column in frame if column not in expected)]
    return pa.schema([(column, _find_type(frame[column], expected.get(column))) for column in columns])


def _find_type(values: pd.Series, expected: pa.DataType | None) -> pa.DataType:
    known = values.dropna()
    try:
        found = pa.Array.from_pandas(known, type=expected).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return _TEXT
    return found if len(known) and found in (pa.bool_(), _INT, _REAL) else expected or _TEXT


def _write_out(values: pd.Series) -> pd.Series:
    """Words for all values but nulls."""
    return values.astype(object).map(str, na_action="ignore")


def empty(schema: pa.Schema) -> pd.DataFrame:
    """A frame without rows."""
    return schema.empty_table().to_pandas()


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema | None = None, is_open: bool = False) -> None:
    """Write a parquet file, whole or not at all, small and with checksums."""
    if schema is not None and is_open:
        schema = widen(schema, frame)
    table = pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(None)
    reals = [field.name for field in table.schema if pa.types.is_floating(field.type)]  # hardly any value comes twice
    how = {"use_byte_stream_split": reals, "use_dictionary": [key for key in table.column_names if key not in reals]}
    write_whole(path, lambda beside: pq.write_table(table, beside, compression="zstd", write_page_checksum=True, **how))


def write_rows(path: Path, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Write rows of a table, with their `origin`, as of now; they, as written."""
    table = TABLES[name]
    frame = conform(frame.assign(written=time.time_ns()), table.part, table.is_open)
    write_frame(path, frame, table.part, table.is_open)
    return frame


def read_frame(path: Path, schema: pa.Schema | None = None, is_open: bool = False) -> pd.DataFrame:
    """Read a parquet file; Unreadable if it is missing, damaged, or lacks columns of the schema."""
    with reading(path), path.open("rb") as file:
        frame = pq.ParquetFile(file, page_checksum_verification=True).read().to_pandas()
        return conform(frame, schema, is_open) if schema else frame
