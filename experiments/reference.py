"""python -m experiments.reference: make the tables of results/reference small enough to be committed.

Measured values stay where the experiment's question names them, to seven digits; all keys, places and settings stay.
"""

import re
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnlab.harness.schema import read_frame, read_key, write_frame

HERE = Path(__file__).parent
REFERENCE = HERE.parent / "results" / "reference"


def main() -> int:
    """Write each table without columns and digits that no figure and no claim reads; remove those without rows."""
    for path in sorted(REFERENCE.glob("*/tables/*.parquet")):
        frame = read_frame(path)
        schema = pq.read_schema(path)
        if frame.empty:
            path.unlink()
        elif read_key(schema) and path.stem != "runs":
            _shorten(path, frame, schema)
    return 0


def _shorten(path: Path, frame: pd.DataFrame, schema: pa.Schema) -> None:
    """Write a table with the measured columns that its question names, rounded, and with all other columns."""
    question = path.parts[-3]
    source = (HERE / "questions" / f"{question}.py").read_text(encoding="utf-8")
    named = re.findall(r'"(\w+)"', source)
    places = [*read_key(schema), "epoch"]

    short = {}
    for column in frame:
        values = frame[column]
        is_measured = values.dtype == "float64" and column not in places
        if not is_measured:
            short[column] = values
        elif column in named:
            short[column] = values.astype("float32").astype("float64")
    kept = [schema.field(column) for column in short]
    write_frame(path, pd.DataFrame(short), pa.schema(kept, schema.metadata))


if __name__ == "__main__":
    sys.exit(main())
