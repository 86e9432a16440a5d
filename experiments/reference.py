"""python -m experiments.reference: make the tables of results/reference small enough to be committed.

Of the measured values those stay that the experiment's question names, to seven digits; keys, places and settings stay
all.
"""

import re
import sys
from pathlib import Path

import pyarrow as pa

from bnlab.harness.schema import TABLES, read_frame, write_frame

HERE = Path(__file__).parent
REFERENCE = HERE.parent / "results" / "reference"


def main() -> int:
    """Write each table without columns and digits that no figure and no claim reads; remove those without rows."""
    for path in sorted(REFERENCE.glob("*/tables/*.parquet")):
        frame, table = read_frame(path), TABLES.get(path.stem)
        if frame.empty:
            path.unlink()
        elif table and path.stem != "runs":
            source = (HERE / "questions" / f"{path.parts[-3]}.py").read_text(encoding="utf-8")
            kept = {*table.key, "epoch", *re.findall(r'"(\w+)"', source)}
            columns = [key for key, of in table.types.items() if key in frame and (key in kept or of != pa.float64())]
            measured = [key for key in columns if key not in (*table.key, "epoch") and table.types[key] == pa.float64()]
            write_frame(path, frame[columns].assign(**frame[measured].astype("float32").astype("float64")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
