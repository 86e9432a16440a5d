"""What do clients with different classes do to batch norm where they average weights, and does fixing it help?

Zhong, Chen and Chao 2023 (FixBN) fix the statistics in a second stage of federated training. The claims were written
before any number; `bnlab report paper=clients` decides them.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
from bnlab.harness.reporting.frames import name_panels, rows, score
from bnlab.harness.reporting.plots import Axis, Forest
from experiments.margins import name_lines

STATISTICS = {
    "local": "of one client",
    "averaged": "averaged over clients",
    "exact": "exact statistics",
}
MODES = {"batch": "batch norm throughout", "fixed": "fixed from half of training on"}
STEPS = {1: "an average every update", 100: "every 100 updates"}


def name_clients(tables: Tables) -> pd.DataFrame:
    """Name the panels by classes and mode, the rows by the updates between two averages, the lines by statistics.

    Fixed weights are left out under exact statistics, under which they were not trained.
    """
    frame = rows(tables, "clients", 1.0)
    frame = frame[(frame["mode"] != "fixed") | (frame["statistics"] != "exact")]
    named = frame.assign(words=frame["mode"].map(MODES))
    in_panels = name_panels(named, "{classes} classes a client, {words}")
    return name_lines(name_lines(in_panels, "local_steps", STEPS, line="name"), "statistics", STATISTICS)


EXPERIMENT = Experiment(
    bears_on=("Q39",),
    columns=("accuracy", "accuracy_lost", "mean_gap"),
    figures={
        "accuracy": Figure(
            "Accuracy of weights that six clients average, by the updates between two averages",
            "Compare the points beside a name: the same averaged weights under different statistics; those of one "
            "client are a mean over clients, and fixed ones the same in all. With 36 classes a client has all of them.",
            score(name_clients, "accuracy", ("panel", "name", "line"), scale=100),
            Forest("name", Axis("test accuracy (%)"), series="line")),
    },
    claims={},
)  # fmt: skip
