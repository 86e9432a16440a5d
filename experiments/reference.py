"""python -m experiments.reference: make the tables of results/reference small enough to be committed.

Of the measured values those stay that the experiment's question names, to seven digits; keys, places and settings stay
all.
"""

import re
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from bnlab.harness.schema import read_frame, read_key, write_frame

HERE = Path(__file__).parent
REFERENCE = HERE.parent / "results" / "reference"


def main() -> int:
    """Write each table without columns and digits that no figure and no claim reads; remove those without rows."""
    for path in sorted(REFERENCE.glob("*/tables/*.parquet")):
        frame = read_frame(path)
        key = read_key(pq.read_schema(path))
        if frame.empty:
            path.unlink()
        elif key and path.stem != "runs":
            _shorten(path, frame, [*key, "epoch"])
    return 0


def _shorten(path: Path, frame: pd.DataFrame, places: list[str]) -> None:
    source = (HERE / "questions" / f"{path.parts[-3]}.py").read_text(encoding="utf-8")
    named = {*places, *re.findall(r'"(\w+)"', source)}
    kept = [str(column) for column in frame if column in named or frame[column].dtype != "float64"]
    measured = [column for column in kept if column not in places and frame[column].dtype == "float64"]
    rounded = {column: frame[column].astype("float32").astype("float64") for column in measured}
    write_frame(path, frame[kept].assign(**rounded))


if __name__ == "__main__":
    sys.exit(main())
