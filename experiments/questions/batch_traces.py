"""What do running averages follow? Moments of single batches, averages of them, and what they are to estimate."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above
from bnlab.harness.reporting.frames import interval, paired, rows, select, share_name
from bnlab.harness.reporting.plots import EstimatorCurves
from bnlab.harness.reporting.style import Axis

SHARES = EARLY, END = (0.1, 1.0)  # of the training
PLACE = ("run", "step", "layer", "channel")
TWO = "Two channels of the second layer of one network, over training. "
EXACT = (
    "exact: over the training split, with the weights as they were then, measured at a few steps that straight lines "
    "join."
)
EACH = ("panel", "batch_size")


def score_channels(statistic: str) -> Score:
    """A statistic of two channels in the second layer, of the first seed at each batch size; last batches as points."""

    def scored(tables: Tables) -> pd.DataFrame:
        frame = rows(tables, "traces")
        frame = select(frame[frame["seed"] == frame.groupby("batch_size")["seed"].transform("min")], depth=2)
        panel = "batch size " + frame["batch_size"].astype(str) + ", channel " + frame["channel"].astype(str)
        kind = np.where(frame["estimator"] == "last_batch", "batch", "average")
        missing = dict.fromkeys(("low", "high"), np.nan)
        return frame.assign(panel=panel, kind=kind, mean=frame[statistic], **missing)

    return scored


def distances(tables: Tables) -> pd.DataFrame:
    """Of each mean, from the exact one of the same step, in standard deviations."""
    frame = rows(tables, "traces", SHARES)
    exact = select(frame, estimator="exact")[[*PLACE, "mean", "var"]]
    both = frame.merge(exact, on=list(PLACE), suffixes=("", "_exact"))
    return both.assign(distance=(both["mean"] - both["mean_exact"]).abs() / both["var_exact"] ** 0.5)


def score_scatter(tables: Tables) -> pd.DataFrame:
    """How many times as far as the EMA a single batch is from the exact mean, over layers and channels."""
    mean = distances(tables).groupby([*EACH, "seed", "estimator", "momentum"], sort=False, dropna=False)["distance"]
    far = mean.mean().reset_index()
    single, ema = (select(far, estimator=name, momentum=m) for name, m in (("last_batch", None), ("ema", 0.1)))
    both = single.merge(ema, on=[*EACH, "seed"], suffixes=("", "_ema"))
    times = both.assign(times=both["distance"] / both["distance_ema"])
    return interval(select(times, batch_size=4), "times", EACH, geometric=True)


def score_move(tables: Tables) -> pd.DataFrame:
    """How far exact means move between a tenth and the end of training, in standard deviations at the end."""
    exact = rows(tables, "traces", SHARES, estimator="exact")
    change = select(paired(exact, "mean", share_name(EARLY), along="panel"), panel=share_name(END))
    moved = change.assign(moved=change["mean"].abs() / change["var"] ** 0.5)
    return interval(moved, "moved", ("batch_size",), average=("layer", "channel"))


EXPERIMENT = Experiment(
    name="batch_traces",
    question="What do running averages follow?",
    answers=("F7", "Q1", "Q7"),
    source="Figure of batch statistics in MABN (Yan et al. 2020): at 2 images a batch they scatter, at 32 they do not. "
    "Claims are on two channels of each layer.",
    columns={"traces": ("layer", "depth", "channel", "mean", "var")},
    figures=(
        Figure("mean", "Means of single batches, and averages of them",
               TWO + "Grey: the mean of single batches, in the units of the layer's input; lines: averages of them; "
               + EXACT,
               score_channels("mean"), EstimatorCurves(Axis("mean"))),
        Figure("variance", "Variances of single batches, and averages of them",
               TWO + "Grey: the unbiased variance of single batches; lines: averages of them; " + EXACT,
               score_channels("var"), EstimatorCurves(Axis("variance", log=True))),
    ),
    claims=(
        Claim("batches_scatter", "In batches of 4 the mean of a single batch is farther from the population mean than "
              "the EMA.",
              score_scatter, above(1.0, "times", "at 1 averaging gains nothing"),
              answers=("Q1",)),
        Claim("population_moves", "Population means move between a tenth and the end of training, by more than a tenth "
              "of a standard deviation.",
              score_move, above(0.1, "σ", "the mean of 100 independent values is off by as much"),
              answers=("Q1", "Q7")),
    ),
)  # fmt: skip
