"""What do statistics of test batches do where images of a class arrive together?

Tomar et al. 2024 (UnMix-TNS) say that they fail, and keep statistics in several components instead, which is not
implemented here. The claims were written before any number; `bnlab report paper=test_streams` decides them.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
from bnlab.harness.reporting.frames import name_panels, put_in_order, rows, score
from bnlab.harness.reporting.plots import ACCURACY, Axis, Curves
from experiments.margins import name_lines

STATISTICS = {
    "running": "running averages",
    "exact": "exact statistics",
    "batch": "test batch",
    "mixed": "test batch and 64 pseudo-samples",
}


def name_streams(tables: Tables) -> pd.DataFrame:
    """Name the panels by shift and stream, and the lines by their statistics."""
    frame = rows(tables, "test_streams", 1.0)
    by_shift = put_in_order(frame, "shift", ("none", "noise:3", "contrast:3", "blur:3"))
    in_order = put_in_order(by_shift, "stream", ("shuffled", "dirichlet", "sorted"))
    return name_lines(name_panels(in_order, "{shift}, {stream}"), "statistics", STATISTICS)


EXPERIMENT = Experiment(
    bears_on=("Q13",),
    columns=("accuracy",),
    figures={
        "accuracy": Figure(
            "Accuracy by the order of the test images and by how many are predicted at once",
            "Compare the panels of a shift: the same test images, shuffled, in portions of classes (Dirichlet 0.1) "
            "and sorted by class. Running averages and exact statistics of the training images do not see the order.",
            score(name_streams, "accuracy", ("panel", "line", "size"), scale=100),
            Curves("size", "line", ACCURACY, across=Axis("images in a test batch", log=True))),
    },
    claims={},
)  # fmt: skip
