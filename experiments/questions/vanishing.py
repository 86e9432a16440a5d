"""Does an input fade from layer to layer in merged and pruned networks, more so in deep ones, and do new statistics
help?

Qu and Horváth 2024 diagnose this as the vanishing feature. The claims were written before any number was known; `bnlab
report paper=vanishing` decides them.
"""

import pandas as pd

from bnlab.harness.reporting.frames import rows, score
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Figure, Question, Tables

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


def select_ends(tables: Tables) -> pd.DataFrame:
    """Find the rows of the first and of the last norm, with a column `place` instead of layer and depth."""
    frame = rows(tables, "vanishing", 1.0, ("model.depth",))
    place = frame["depth"].map({1: "first"})
    is_last = frame["depth"] == frame["layers"]
    ends = frame.assign(place=place.mask(is_last, "last"))
    return ends[ends["place"].notna()].drop(columns=["layer", "depth"])


QUESTION = Question(
    bears_on=("Q38", "Q39"),
    columns=("accuracy", "accuracy_lost", "variance_ratio"),
    figures={
        "fading": Figure(
            "Variance of the layers' outputs in merged and pruned networks",
            "Variance of the outputs from layer to layer, relative to that of the network itself under exact "
            "statistics (1). Matched: two networks trained apart, averaged after matching. Pruned: 80% or 90% of the "
            "weights are 0. Under exact statistics of their own weights, all of them are at 1.",
            score("vanishing", "variance_ratio", ("model.depth", "statistics", "change", "depth"), at=1.0,
                  geometric=True, change=DRAWN, statistics="stale"),
            Curves("depth", "change", Axis("variance over that of the network", log=True)),
            panels="{statistics}, {model.depth} layers", names={"change": CHANGES, "statistics": STATISTICS}),
    },
    claims={},
)  # fmt: skip
