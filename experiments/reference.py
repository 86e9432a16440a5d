"""python -m experiments.reference: make the tables of results/reference small enough to be committed.

Of the measured values those stay that the experiment's question names, to seven digits; keys, places and settings stay
all.
"""

import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bnlab.harness.measurements import list_measurements
from bnlab.harness.schema import Table, read_frame, write_frame
from experiments.catalogue import find_experiment

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


def main() -> int:
    """Write each table without columns and digits that no figure and no claim reads; remove those without rows."""
    measurements = list_measurements()
    for path in sorted(REFERENCE.glob("*/tables/*.parquet")):
        frame = read_frame(path)
        if frame.empty:
            path.unlink()
        elif path.stem in measurements:
            _shorten(path, frame, measurements[path.stem].table)
    return 0


def _shorten(path: Path, frame: pd.DataFrame, table: Table) -> None:
    """Leave out measured values that the question does not read, and give the others seven digits."""
    places = [*table.key, "epoch"]
    read = find_experiment(path.parts[-3]).columns
    measured = [str(column) for column in frame if column not in places and frame[column].dtype == "float64"]
    left_out = [column for column in measured if column not in read]

    shortened = frame.drop(columns=left_out)
    for column in measured:
        if column in read:
            shortened[column] = frame[column].astype("float32").astype("float64")
    schema = table.schema
    kept = [schema.field(column) for column in shortened]
    write_frame(path, shortened, pa.schema(kept, schema.metadata))


if __name__ == "__main__":
    sys.exit(main())
