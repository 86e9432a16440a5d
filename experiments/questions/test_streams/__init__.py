"""What do statistics of test batches do where images of a class arrive together?

Tomar et al. 2024 (UnMix-TNS) say that they fail, and keep statistics in several components instead, which is not
implemented here. The claims were written before any number; `bnlab report paper=test_streams` decides them.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
from bnlab.harness.reporting.frames import name_panels, rows, score
from bnlab.harness.reporting.plots import ACCURACY, Axis, Curves, Forest
from experiments.margins import name_lines

STATISTICS = {
    "running": "running averages",
    "exact": "exact statistics",
    "batch": "test batch",
    "mixed": "test batch and 64 pseudo-samples",
}


STREAMS = {"shuffled": "shuffled", "dirichlet": "in portions of classes", "sorted": "sorted by class"}
SHIFTS = {"none": "as in training", "noise:3": "noise", "contrast:3": "low contrast", "blur:3": "blur"}


def name_streams(tables: Tables) -> pd.DataFrame:
    """Name the panels by the order of the images, rows by how they are shifted, and the lines by their statistics."""
    frame = rows(tables, "test_streams", 1.0)
    named = name_lines(name_lines(frame, "shift", SHIFTS, line="name"), "stream", STREAMS, line="order")
    return name_lines(name_panels(named, "{order}"), "statistics", STATISTICS)


EXPERIMENT = Experiment(
    bears_on=("Q13",),
    columns=("accuracy",),
    figures={
        "sizes": Figure(
            "Accuracy by the order of the test images and by how many are predicted at once",
            "Compare the panels: the same test images, shuffled, in portions of classes (Dirichlet 0.1), and sorted by "
            "class. Running averages and exact statistics of the training images do not see the order, and lie on "
            "each other.",
            score(name_streams, "accuracy", ("panel", "line", "size"), scale=100, shift="none"),
            Curves("size", "line", ACCURACY, across=Axis("images in a test batch", log=True))),
        "shifts": Figure(
            "Accuracy on shifted test images by their order, 64 predicted at once",
            "Compare the points beside a name over the panels. Under running averages and exact statistics of training "
            "the three shifts leave an accuracy near chance, 3%.",
            score(name_streams, "accuracy", ("panel", "name", "line"), scale=100, size=64),
            Forest("name", Axis("test accuracy (%)"), series="line")),
    },
    claims={},
)  # fmt: skip
