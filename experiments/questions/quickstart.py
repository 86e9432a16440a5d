"""What do running averages cost, early and late in training? Real digits, three batch sizes, one momentum sweep."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, within
from bnlab.harness.reporting.frames import interval, paired, rows
from bnlab.harness.reporting.plots import Curves, EstimatorCurves

SHARES = EARLY, LATE = 0.1, 1.0  # of the training
DEFAULT = 0.1  # PyTorch's momentum
BY = ("panel", "batch_size", "momentum")


def score_gap(tables: Tables) -> pd.DataFrame:
    """Gap of the EMA's mean by panel, batch size and momentum."""
    return interval(rows(tables, "gaps", SHARES, estimator="ema"), "mean_gap", BY, average="layer", geometric=True)


def score_estimators(tables: Tables) -> pd.DataFrame:
    """Gap of the mean by batch size, estimator and epoch, at PyTorch's momentum where there is one."""
    gaps = rows(tables, "gaps", momentum=(DEFAULT, None))
    by = ("panel", "estimator", "momentum", "epoch")
    return interval(gaps[gaps["estimator"] != "exact"], "mean_gap", by, average="layer", geometric=True)


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent under the EMA by momentum, and under exact statistics (momentum null)."""
    return interval(rows(tables, "evaluations", SHARES, estimator=("ema", "exact")), "accuracy", BY, scale=100)


def score_cost(tables: Tables, share: float) -> pd.DataFrame:
    """Points of accuracy that PyTorch's momentum loses against exact statistics of the same network."""
    chosen = rows(tables, "evaluations", (share,), estimator=("ema", "exact"), momentum=(DEFAULT, None))
    return interval(paired(chosen, "accuracy"), "accuracy", ("panel", "batch_size"), scale=-100)


def score_choosing(tables: Tables) -> pd.DataFrame:
    """How many times the default's gap is that of `predictive`: geometric mean over all steps and layers."""
    gaps = rows(tables, "gaps", estimator=("ema", "predictive"), momentum=(DEFAULT, None))
    logs = paired(gaps.assign(times=np.log(gaps["mean_gap"])), "times", against="predictive")
    times = np.exp(logs.groupby(["batch_size", "seed"])["times"].mean()).reset_index()
    return interval(times, "times", ("batch_size",), geometric=True)


MOMENTUM: dict[str, Any] = {
    "x": "momentum",
    "xlabel": "momentum (weight of the new batch)",
    "by": "batch_size",
    "mark": (DEFAULT, "PyTorch's default"),
}
STEPS = "The learning rate rises for a fifth of training and falls to 0 at the end."
POINT = "less than a point would decide between no two networks of this size"

EXPERIMENT = Experiment(
    name="quickstart",
    question="What do running averages cost, early and late in training?",
    answers=("Q2", "Q11", "H2"),
    source="PyTorch's momentum of 0.1 is used for any number of steps.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure(
            "gap",
            "How far the running mean is from the population mean",
            "Root-mean-square distance over channels, averaged over layers, in standard deviations of the "
            "layer's input; lower is better. Small momenta average many batches: little noise, but they lag behind the "
            "weights and keep their start of 0 for long. " + STEPS,
            score_gap,
            Curves(**MOMENTUM, ylabel="gap of the running mean (σ)", log_y=True),
        ),
        Figure(
            "estimators",
            "Other averages of the same batches",
            "Distance of the estimated mean from the exact population mean, in standard deviations, averaged "
            "over layers, over training; where an average has a momentum it is PyTorch's 0.1; Kalman and predictive "
            "momentum choose theirs. Precise BN is measured again on the training set, all others come from the "
            "recorded batches. " + STEPS,
            score_estimators,
            EstimatorCurves(ylabel="gap of the mean (σ)", log_y=True),
        ),
        Figure(
            "accuracy",
            "What the gap costs: test accuracy of the same networks",
            "Each network is evaluated under its running averages for every momentum, and under exact "
            "population statistics (dashed); nothing else differs.",
            score_accuracy,
            Curves(**MOMENTUM, ylabel="test accuracy (%)", ylim=(0, 102), level="exact statistics"),
        ),
    ),
    claims=(
        Claim(
            "default_costs_early",
            "After a tenth of training, PyTorch's momentum costs accuracy.",
            partial(score_cost, share=EARLY),
            above(1.0),
            "points",
            POINT,
        ),
        Claim(
            "default_is_harmless_late",
            "At the end of training it costs nothing that counts.",
            partial(score_cost, share=LATE),
            within(-1.0, 1.0),
            "points",
            POINT,
        ),
        Claim(
            "predictive_is_nearer",
            "The gap of PyTorch's momentum is larger than that of one that keeps forecasting the next batch.",
            score_choosing,
            above(1.0),
            "times",
            "at 1 the plain momentum is as near",
        ),
    ),
)
