"""What happens to batch norm if clients with different classes average their weights, and does fixing its statistics
help?

Zhong, Chen and Chao 2023 (FixBN) fix the statistics in a second stage of federated training. The claims were written
before any number was known; `bnlab report paper=clients` decides them.
"""

import pandas as pd

from bnlab.harness.reporting.frames import rows, score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Figure, Question, Tables

STATISTICS = {
    "local": "running averages of one client",
    "averaged": "averaged buffers of all clients",
    "exact": "exact statistics",
}
MODES = {"batch": "batch norm throughout", "fixed": "fixed from half of training on"}
STEPS = {1: "an average every update", 100: "every 100 updates"}
PANELS = "{classes} classes a client, {mode}"


def select_trained(tables: Tables) -> pd.DataFrame:
    """Find all rows but those of fixed weights under exact statistics, under which they were not trained."""
    frame = rows(tables, "clients", 1.0)
    return frame[(frame["mode"] != "fixed") | (frame["statistics"] != "exact")]


QUESTION = Question(
    bears_on=("Q39",),
    columns=("accuracy", "accuracy_lost", "mean_gap"),
    figures={
        "accuracy": Figure(
            "Accuracy of weights averaged over six clients, by the number of updates between two averages",
            "Compare the points beside a name: the same averaged weights under different statistics. The accuracy "
            "under one client's statistics is a mean over clients; fixed statistics are the same for all. A client "
            "with 36 classes has all of them.",
            score(select_trained, "accuracy", ("classes", "mode", "local_steps", "statistics"), scale=100),
            Forest("local_steps", Axis("test accuracy (%)"), series="statistics"),
            panels=PANELS, names={"mode": MODES, "statistics": STATISTICS, "local_steps": STEPS}),
    },
    claims={},
)  # fmt: skip
