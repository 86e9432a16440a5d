"""Accuracy over training under running, precise and exact statistics: who is pessimistic, and when?"""

from __future__ import annotations

from functools import partial

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, within
from bnlab.harness.reporting.frames import interval, paired, rows
from bnlab.harness.reporting.plots import EstimatorCurves

SHARES = (0.1, 0.55, 1.0)  # of the training, at which claims are decided
BY = ("panel", "estimator", "momentum", "epoch")


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent by batch size, estimator and epoch."""
    return interval(rows(tables, "evaluations"), "accuracy", BY, scale=100)


def score_cost(tables: Tables) -> pd.DataFrame:
    """Points of accuracy against exact statistics of the same network, by batch size, estimator and epoch."""
    return interval(paired(rows(tables, "evaluations"), "accuracy"), "accuracy", BY, scale=100)


def score_loss(tables: Tables, estimator: str) -> pd.DataFrame:
    """Points of accuracy that an estimator loses against exact statistics, by share of the training and batch size."""
    lost = paired(rows(tables, "evaluations", SHARES, estimator=(estimator, "exact")), "accuracy")
    return interval(lost, "accuracy", ("panel", "batch_size", "momentum"), scale=-100)


def claim_cost(estimator: str, text: str) -> Claim:
    """It loses more than a point."""
    return Claim(
        f"{estimator}_costs",
        text,
        partial(score_loss, estimator=estimator),
        above(1.0),
        "points",
        "an interval over five seeds is about half a point each way",
    )


EXPERIMENT = Experiment(
    name="training_curve",
    question="How does accuracy under EMA, average, last batch, precise and exact statistics develop?",
    answers=("F1", "Q2", "Q11"),
    source="Accuracies over training that are computed with running averages seem to say that the weights are bad.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure(
            "accuracy",
            "The same weights, evaluated under different statistics",
            "Test accuracy over training. Exact statistics show what the weights can do at that step. All "
            "estimators are computed on the same networks at the same steps.",
            score_accuracy,
            EstimatorCurves(ylabel="test accuracy (%)", ylim=(0, 102)),
        ),
        Figure(
            "cost",
            "Accuracy against that under exact population statistics",
            "Difference in test accuracy to the same network under exact statistics, paired; below 0 is a "
            "loss. All estimators are computed on the same networks at the same steps.",
            score_cost,
            EstimatorCurves(ylabel="accuracy − that under exact (points)", zero="exact population"),
        ),
    ),
    claims=(
        claim_cost("ema", "PyTorch's running average costs accuracy."),
        claim_cost("cumulative", "The average of all batches costs accuracy."),
        claim_cost("last_batch", "The moments of the last batch alone cost accuracy."),
        Claim(
            "precise_is_exact",
            "Precise BN with 2,048 images costs nothing that counts.",
            partial(score_loss, estimator="precise(images=2048)"),
            within(-1.0, 1.0),
            "points",
            "the same margin as for what costs something",
        ),
    ),
)
