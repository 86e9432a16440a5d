"""How far back may an average of the weights reach before averaged statistics no longer fit it?

Morales-Brotons et al. 2024 average weights exponentially over windows of half a percent to ten percent of training, and
recompute the statistics. The claims were written before any number was known; `bnlab report paper=averaging_windows`
decides them.
"""

import pandas as pd

from bnlab.harness.reporting.frames import OtherThan, rows, score
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Figure, Question, Tables

SETTINGS = ("batch_size", "optimizer.schedule")
STATISTICS = {
    "kept": "running averages of the trained network",
    "averaged": "averaged buffers",
    "recomputed": "exact statistics",
}
SCHEDULES = {"onecycle": "one-cycle", "constant": "constant rate"}


def find_best_window(tables: Tables) -> pd.DataFrame:
    """Find the window of the highest accuracy of each network, share of training and kind of statistics.

    Of windows that are equally good the shortest counts. The trained network itself, with window 0, is none.
    """
    frame = rows(tables, "averaged_weights", (0.55, 1.0), SETTINGS)
    # `idxmax` takes the first of equal values.
    averages = frame[frame["window"] > 0].sort_values("window", kind="stable")
    best = averages.groupby(["run", "step", "statistics"])["accuracy"].idxmax()
    chosen = averages.loc[best]
    return chosen.assign(panel=chosen["panel"].str.removeprefix("after "))


QUESTION = Question(
    bears_on=("Q36",),
    columns=("accuracy", "accuracy_lost", "mean_gap", "var_gap"),
    figures={
        "windows": Figure(
            "Accuracy of averaged weights by how far the average reaches back",
            "Compare the lines of a panel: the same averaged weights under different statistics. The averages are "
            "exponential, and take in every update.",
            score("averaged_weights", "accuracy", ("optimizer.schedule", "panel", "statistics", "window"),
                  at=(0.55, 1.0), scale=100, window=OtherThan(0.0)),
            Curves("window", "statistics", Axis("test accuracy (%)", (20, 100)),
                   across=Axis("share of training that the average reaches back", log=True)),
            panels="{optimizer.schedule}, {panel}", names={"optimizer.schedule": SCHEDULES, "statistics": STATISTICS}),
    },
    claims={},
)  # fmt: skip
