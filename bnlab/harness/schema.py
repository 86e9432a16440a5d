"""Tables: their keys, columns and meanings, and parquet files that carry these with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnlab.common.files import reading, write_whole

# Names in the metadata of files, which Arrow keeps as bytes.
_KEY, _MEANING, _OPEN, _OPTIONAL = b"key", b"meaning", b"is_open", b"is_optional"
ROW_KEY = "row_key"
"""A further column of files with measured rows, see `bnlab.harness.records`."""


@dataclass(frozen=True)
class Column:
    """The type of a column and what it means, in Markdown; whether a table without any value of it lacks it."""

    type: pa.DataType
    meaning: str
    is_optional: bool = False


text = partial(Column, pa.string())
integer = partial(Column, pa.int64())
real = partial(Column, pa.float64())
boolean = partial(Column, pa.bool_())


@dataclass(frozen=True)
class Table:
    """Table: what it has rows of (`about`, in Markdown), its key, its columns, and what they mean."""

    about: str
    key: Mapping[str, Column]  # in which no two rows agree; `momentum` is null where it has no meaning
    others: Mapping[str, Column]
    is_open: bool = False  # rows may have further columns, as `runs` has the settings of a user's own functions

    @property
    def columns(self) -> dict[str, Column]:
        """All columns, in order."""
        return {**self.key, **self.others}

    @property
    def schema(self) -> pa.Schema:
        """Schema of the table's files: types, and as metadata the key and what the columns mean."""
        fields = []
        for name, each in self.columns.items():
            optional = {_OPTIONAL: b"true"} if each.is_optional else {}
            fields.append(pa.field(name, each.type, metadata={_MEANING: each.meaning, **optional}))
        return pa.schema(fields, {_KEY: json.dumps([*self.key]), _OPEN: json.dumps(self.is_open)})

    @property
    def part(self) -> pa.Schema:
        """Schema of files with measured rows, which carry their keys."""
        return self.schema.append(pa.field(ROW_KEY, pa.string()))


METRIC = Column(
    pa.float64(),
    "of a task of your own: mean over the items of its metric, see `task.metric` and `task.unit` in `runs`",
    is_optional=True,
)
"""What stands in place of `accuracy` where networks do not classify."""

_COMMON = {
    "run": text("name of the network, as in `runs`"),
    "step": integer("updates before the measurement"),
    "estimator": text("canonical name with all parameters but the momentum"),
    "momentum": real("weight of the new batch; null where the estimator has none"),
    "statistics_split": text("data of the statistics: train, train_augmented, val; test for rules at inference time"),
    "layer": text("name of the layer in `model.named_modules()`"),
    "epoch": real("`step` in passes over the training split"),
    "depth": integer("number of the layer in the order of the forward pass, from 1"),
    "channels": integer("channels of the layer"),
}


def common(names: str) -> dict[str, Column]:
    """Columns that several tables have."""
    return {name: _COMMON[name] for name in names.split()}


def read_key(schema: pa.Schema) -> list[str]:
    """The key of the table that a file is of; empty where the file does not say it."""
    key: list[str] = json.loads((schema.metadata or {}).get(_KEY, b"[]"))
    return key


def read_meanings(schema: pa.Schema) -> dict[str, str]:
    """What the columns of the table that a file is of mean, in Markdown."""
    return {field.name: (field.metadata or {}).get(_MEANING, b"").decode() for field in schema}


def leave_out_empty(schema: pa.Schema, frame: pd.DataFrame) -> pa.Schema:
    """Return the schema without optional columns of which the frame has no value."""
    kept = [each for each in schema if not (_OPTIONAL in (each.metadata or {}) and frame[each.name].isna().all())]
    return pa.schema(kept, schema.metadata)


def is_open(schema: pa.Schema) -> bool:
    """Find out if the table that a file is of may have further columns."""
    return bool(json.loads((schema.metadata or {}).get(_OPEN, b"false")))


def conform(frame: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Give a frame exactly the schema's columns and types, and further ones of an open table; KeyError if one lacks."""
    if is_open(schema):
        schema = widen(schema, frame)
        for field in schema:
            # A user's function may take a number in one network and a word in another; such a column is text.
            if pa.types.is_string(field.type):
                words = frame[field.name].astype(object).map(str, na_action="ignore")
                frame = frame.assign(**{field.name: words})
    # By way of Arrow, the frame gets the types that it would have if it were read from a file.
    return pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False).to_pandas()


def widen(schema: pa.Schema, frame: pd.DataFrame) -> pa.Schema:
    """The schema of an open table's rows: its columns, and behind them the further ones that the rows have.

    A column of which a value is not of its type is text, as where a user's own model takes a word for `model.width`.
    """
    fields = [field.with_type(_find_type(frame[field.name], field.type)) for field in schema]
    fields += [pa.field(str(name), _find_type(frame[name], None)) for name in frame if name not in schema.names]
    return pa.schema(fields, schema.metadata)


def _find_type(values: pd.Series, expected: pa.DataType | None) -> pa.DataType:
    known = values.dropna()
    if known.empty:
        return expected or pa.float64()
    try:
        inferred = pa.Array.from_pandas(known, type=expected).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pa.string()
    if inferred in (pa.bool_(), pa.int64(), pa.float64()):
        return inferred
    # Others, such as lists and dates, become text.
    return expected or pa.string()


def empty(schema: pa.Schema) -> pd.DataFrame:
    """A frame without rows."""
    return schema.empty_table().to_pandas()


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema | None = None) -> None:
    """Write a parquet file, whole or not at all, small and with checksums."""
    if schema is not None and is_open(schema):
        schema = widen(schema, frame)
    metadata = None if schema is None else schema.metadata
    # pandas adds a description of the columns, which no checksum covers. It is left out.
    table = pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(metadata)
    # Hardly any real number comes twice, so that a dictionary does not help. Byte-stream split makes tables a
    # fifth smaller, but Arrow ignores it in columns that have a dictionary.
    reals = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    words = [name for name in table.column_names if name not in reals]
    write_whole(
        path,
        lambda beside: pq.write_table(
            table,
            beside,
            compression="zstd",
            write_page_checksum=True,
            use_byte_stream_split=reals,
            use_dictionary=words,
        ),
    )


def find_fault(table: Table, frame: pd.DataFrame) -> str:
    """Find what is wrong with the rows of a table, in words; empty: nothing."""
    lacking = [column for column in table.columns if column not in frame]
    if lacking:
        return f"its rows have no column {lacking[0]}"
    unknown = [str(column) for column in frame if column not in table.columns]
    if unknown:
        return f"its rows have a column {unknown[0]}, which its table does not say"
    key = [*table.key]
    doubled = frame[frame.duplicated(key)]
    if len(doubled):
        values = [f"{column}={doubled[column].iloc[0]}" for column in key]
        return f"two of its rows agree in the key: {', '.join(values)}"
    try:
        conform(frame, table.schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        return f"its rows have values that are not of their column's type: {' '.join(map(str, error.args))}"
    return ""


def write_rows(path: Path, table: Table, frame: pd.DataFrame) -> None:
    """Write measured rows of a table, with their keys."""
    write_frame(path, conform(frame, table.part), table.part)


def read_frame(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a parquet file, or some of its columns; Unreadable if it is missing or damaged."""
    with reading(path), path.open("rb") as file:
        return pq.ParquetFile(file, page_checksum_verification=True).read(columns).to_pandas()


def read_rows(path: Path, schema: pa.Schema) -> pa.Table:
    """Read measured rows as an Arrow table of this schema; Unreadable if it is missing, damaged, or no such file.

    Columns that an earlier version of a user's measurement did not have are null. Making a frame of each of thousands
    of files with a few rows takes ten times as long.
    """
    with reading(path), path.open("rb") as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
        _require_key(table.schema)
        if not table.schema.equals(schema):
            fields = list(table.schema)
            # Arrow compares fields without metadata: a column of another type is missing, but one whose
            # meaning was written in other words is not.
            shared = [field.name for field in schema if field in fields]
            table = pa.concat_tables([schema.empty_table(), table.select(shared)], promote_options="default")
        return table.cast(schema)


def read_schema(path: Path) -> pa.Schema:
    """The schema of a file with rows of a table, which says the key; Unreadable if it does not."""
    with reading(path):
        schema = pq.read_schema(path)
        _require_key(schema)
        return schema


def _require_key(schema: pa.Schema) -> None:
    if not read_key(schema):
        raise ValueError("it does not say the key of its table")
