"""What do running averages make of a layer's normalized activations, early and late?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import interval, rows, select, share_name
from bnlab.harness.reporting.plots import Histograms
from bnlab.harness.reporting.style import Axis

SHARES = EARLY, LATE = (0.03, 1.0)  # of the training
BIN = ("panel", "estimator", "momentum", "left", "right")
EACH = ("panel", "batch_size")
OTHERWISE = ("share", "5% of the values in another bin are as a shift by an eighth of a standard deviation makes it")


def shares(tables: Tables) -> pd.DataFrame:
    """Bins of the EMA, of exact statistics and of batches of the training size."""
    frame = rows(tables, "histograms", SHARES)
    own = frame["estimator"] == "test_batch(n=" + frame["batch_size"].astype(str) + ")"
    return frame[own | frame["estimator"].isin(["ema", "exact"])]


def score_histograms(tables: Tables) -> pd.DataFrame:
    """Shares of the bins of the second layer, a panel for each batch size and share of the training."""
    frame = select(shares(tables), depth=2).sort_values("batch_size", kind="stable")
    panel = "batch size " + frame["batch_size"].astype(str) + ", " + frame["panel"].str.removesuffix(" of training")
    return interval(frame.assign(panel=panel), "share", BIN)


def score_misplaced(share: float, *sizes: int) -> Score:
    """The share of values that the EMA puts in another bin than exact statistics, averaged over layers."""

    def scored(tables: Tables) -> pd.DataFrame:
        key = ["run", "step", "panel", "layer", "left"]
        frame = shares(tables)
        exact = select(frame, estimator="exact")[[*key, "statistics_split", "share"]]
        ema = select(frame, estimator="ema", panel=share_name(share), batch_size=sizes).drop(columns="statistics_split")
        both = ema.merge(exact, on=key, suffixes=("", "_exact"))
        misplaced = both.assign(misplaced=(both["share"] - both["share_exact"]).abs() / 2)
        histogram = [*EACH, "seed", "layer", "momentum", "statistics_split"]
        each = misplaced.groupby(histogram, sort=False, dropna=False)["misplaced"].sum(min_count=1).reset_index()
        return interval(each, "misplaced", EACH, average="layer")

    return scored


EXPERIMENT = Experiment(
    name="activations",
    question="What do running averages make of a layer's normalized activations, early and late?",
    answers=("F8", "Q1"),
    source="EvalNorm (Singh & Shrivastava 2019): at small batches training and inference normalize differently.",
    columns={"histograms": ("layer", "depth", "left", "right", "share")},
    figures=(
        Figure("histograms", "Normalized activations of the second layer",
               "Share of the values in bins of a quarter of a standard deviation, before scale and shift, over all "
               "channels and positions of 512 training images. Test batch: as in training, in batches of the training "
               "size. The bins at both ends also have all values beyond them.",
               score_histograms,
               Histograms(Axis("normalized activation (σ)", (-4, 4)), Axis("share of the values"))),
    ),
    claims=(
        Claim("other_early", "Early at a large batch the EMA gives layers other inputs than exact statistics do.",
              score_misplaced(EARLY, 256), above(0.05, *OTHERWISE)),
        Claim("same_late", "At the end of training the EMA gives layers the same inputs as exact statistics do.",
              score_misplaced(LATE, 4, 256), below(0.05, *OTHERWISE)),
    ),
)  # fmt: skip
