"""Does an input fade from layer to layer in merged and pruned networks, more in deep ones, and do new statistics help?

Qu and Horváth 2024 diagnose this as the vanishing feature. The claims were written before any number; `bnlab report
paper=vanishing` decides them.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Figure, Tables
from bnlab.harness.reporting.frames import name_panels, rows, score
from bnlab.harness.reporting.plots import Axis, Curves
from experiments.margins import name_lines

CHANGES = {
    "none": "unchanged",
    "apart": "averaged as they are",
    "matched": "averaged after matching",
    "pruned:0.5": "50% pruned",
    "pruned:0.7": "70% pruned",
    "pruned:0.8": "80% pruned",
    "pruned:0.9": "90% pruned",
    "pruned:0.95": "95% pruned",
}
DRAWN = ("matched", "pruned:0.8", "pruned:0.9")
STATISTICS = {"stale": "old running averages", "exact": "exact statistics"}


def name_changes(tables: Tables) -> pd.DataFrame:
    """Find all rows at the end of training, in panels by depth and statistics; the line is the change in words."""
    frame = rows(tables, "vanishing", 1.0, ("model.depth",))
    in_order = name_lines(name_lines(frame, "change", CHANGES), "statistics", STATISTICS, line="kind")
    return name_panels(in_order, "{kind}, {layers} layers")


def select_ends(tables: Tables) -> pd.DataFrame:
    """Find the rows of the first and of the last norm, with a column `place` instead of layer and depth."""
    frame = name_changes(tables)
    place = frame["depth"].map({1: "first"})
    is_last = frame["depth"] == frame["layers"]
    ends = frame.assign(place=place.mask(is_last, "last"))
    return ends[ends["place"].notna()].drop(columns=["layer", "depth"])


def find_networks(tables: Tables) -> pd.DataFrame:
    """Find one row for each network, change and kind of statistics, with its accuracy; one panel for all."""
    frame = name_changes(tables).assign(panel="")
    # Accuracies are repeated in the rows of all layers, so that those of the first layer are enough.
    return frame[frame["depth"] == 1].drop(columns=["layer", "depth"])


EXPERIMENT = Experiment(
    bears_on=("Q35", "Q39"),
    columns=("accuracy", "accuracy_lost", "variance_ratio"),
    figures={
        "fading": Figure(
            "Variance of the layers' outputs in merged and pruned networks",
            "Compare with 1, the network itself under exact statistics, and follow a line from layer to layer. "
            "Matched: two networks trained apart, averaged after matching. Pruned: 80% or 90% of the weights are 0. "
            "Under exact statistics of the same weights all of them are at 1.",
            score(name_changes, "variance_ratio", ("panel", "line", "depth"), geometric=True, change=DRAWN,
                  statistics="stale"),
            Curves("depth", "line", Axis("variance over that of the network", log=True))),
    },
    claims={},
)  # fmt: skip
