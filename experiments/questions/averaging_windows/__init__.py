"""How long may an average of the weights reach back before averaged statistics no longer serve it?

Morales-Brotons et al. 2024 average weights exponentially over windows of half a percent to ten percent of training,
and recompute the statistics. The claims were written before any number; `bnlab report paper=averaging_windows` decides
them.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
from bnlab.harness.reporting.frames import name_panels, rows, score
from bnlab.harness.reporting.plots import Axis, Curves
from experiments.margins import name_lines

SETTINGS = ("batch_size", "optimizer.schedule")
STATISTICS = {
    "kept": "kept from the trained network",
    "averaged": "averaged as the weights",
    "recomputed": "recomputed",
}
SCHEDULES = {"onecycle": "one-cycle", "constant": "constant rate"}


def name_windows(tables: Tables) -> pd.DataFrame:
    """Name the panels by share of training and schedule, and the lines by their statistics; averages alone."""
    frame = rows(tables, "averaged_weights", (0.55, 1.0), SETTINGS)
    averages = frame[frame["window"] > 0]
    named = averages.assign(words=averages["optimizer.schedule"].map(SCHEDULES))
    return name_lines(name_panels(named, "{words}, {panel}"), "statistics", STATISTICS)


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


EXPERIMENT = Experiment(
    bears_on=("Q24",),
    columns=("accuracy", "accuracy_lost", "mean_gap", "var_gap"),
    figures={
        "windows": Figure(
            "Accuracy of averaged weights by how far the average reaches back",
            "Compare the lines of a panel: the same averaged weights under different statistics. Averages are "
            "exponential, over each update.",
            score(name_windows, "accuracy", ("panel", "line", "window"), scale=100),
            Curves("window", "line", Axis("test accuracy (%)", (20, 100)),
                   across=Axis("share of training that the average reaches back", log=True))),
    },
    claims={},
)  # fmt: skip
