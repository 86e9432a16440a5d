"""When does batch norm fail where clients with different classes average their weights, and is it enough to fix it?

Zhong, Chen and Chao 2023 (FixBN) fix the statistics in a second stage of federated training. The claims were written
before any number; `bnlab report paper=clients` decides them.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
from bnlab.harness.reporting.frames import name_panels, rows, score
from bnlab.harness.reporting.plots import ACCURACY, Axis, Curves
from experiments.margins import name_lines

STATISTICS = {
    "local": "of one client",
    "averaged": "averaged over clients",
    "exact": "exact statistics",
}
MODES = {"batch": "batch norm throughout", "fixed": "fixed from half of training on"}


def name_clients(tables: Tables) -> pd.DataFrame:
    """Name the panels by classes and mode, and the lines by their statistics."""
    frame = rows(tables, "clients", 1.0)
    named = frame.assign(words=frame["mode"].map(MODES))
    return name_lines(name_panels(named, "{classes} classes a client, {words}"), "statistics", STATISTICS)


EXPERIMENT = Experiment(
    bears_on=("Q11",),
    columns=("accuracy", "accuracy_lost", "mean_gap"),
    figures={
        "accuracy": Figure(
            "Accuracy of weights that six clients average, by the updates between two averages",
            "Compare the lines of a panel: the same averaged weights under different statistics. With 36 classes a "
            "client has all of them.",
            score(name_clients, "accuracy", ("panel", "line", "local_steps"), scale=100),
            Curves("local_steps", "line", ACCURACY, across=Axis("updates between two averages", log=True))),
    },
    claims={},
)  # fmt: skip
