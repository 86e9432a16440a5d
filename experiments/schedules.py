"""Scores of predictive momentum in trainings that differ in batch size and schedule of the learning rate."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import name_panels, over_best, paired, rows, score, share_name
from bnlab.harness.reporting.plots import AGAINST_EXACT, TIMES_THE_BEST, EstimatorCurves
from experiments.margins import FLAT

SHARES = _, EARLY, _, LATE = (0.03, 0.1, 0.55, 1.0)  # of the training, at which predictions are measured
DEFAULT, MANY = 0.1, 256  # PyTorch's momentum; images in a batch
SHOWN = (DEFAULT, None)  # of the fixed momenta, in figures
BY = ("batch_size", "optimizer.schedule")
EACH = ("panel", *BY)
SETTING = ("panel", "estimator", "momentum", "epoch")


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracy of the forecasts' choice minus that under PyTorch's momentum in the same network."""
    both = rows(tables, "evaluations", SHARES, BY, estimator=("ema", "predictive"), momentum=SHOWN)
    return paired(both, "accuracy", against="ema")


def find_times(tables: Tables, *shares: float) -> pd.DataFrame:
    """How many times the gap of the best fixed momentum of the layer and step, known in hindsight."""
    return over_best(rows(tables, "gaps", shares, BY, estimator=("ema", "cumulative", "predictive")), "mean_gap")


def score_times(*shares: float, **wanted: Any) -> Score:
    """That of the forecasts' choice, at shares of the training or, without any, over all measured steps."""
    by, over = (EACH, ("layer",)) if shares else (BY, ("layer", "epoch"))
    return score(lambda tables: find_times(tables, *shares), "mean_gap", by, average=over, geometric=True,
                 estimator="predictive", **wanted)  # fmt: skip


def name_trainings(frame: pd.DataFrame) -> pd.DataFrame:
    """A panel for each schedule and batch size, in this order."""
    named = name_panels(frame.assign(schedule=frame["optimizer.schedule"]), "{schedule}, batch size {batch_size}")
    return named.sort_values("schedule", kind="stable")


def find_losses(tables: Tables) -> pd.DataFrame:
    """Accuracy minus that under exact statistics of the same network."""
    return name_trainings(paired(rows(tables, "evaluations", by=BY), "accuracy", against="exact"))


GAP_FIGURE = Figure(
    "gap",
    "The gap against that of the best fixed momentum",
    "Gap of the mean over the smallest that any fixed momentum has in the same layer of the same network at "
    "the same step, geometric mean over layers; the best momentum is known in hindsight only.",
    score(
        lambda tables: name_trainings(find_times(tables)),
        "mean_gap",
        SETTING,
        average="layer",
        geometric=True,
        momentum=SHOWN,
    ),
    EstimatorCurves(TIMES_THE_BEST),
)

LOSS_FIGURE = Figure(
    "accuracy",
    "Accuracy against that under exact statistics",
    "Difference in test accuracy to the same network under exact statistics, paired; below 0 is a loss. Precise BN is "
    "measured again each time, by another pass over training images: 2,048, or all where there are fewer.",
    score(find_losses, "accuracy", SETTING, scale=100, momentum=SHOWN),
    EstimatorCurves(AGAINST_EXACT, zero="exact population"),
)


def make_claims(points: float, reason: str, where: str = "") -> tuple[Claim, ...]:
    """What the forecasts' choice is to be worth in these networks.

    Args:
        points: margin of a loss in accuracy.
        reason: for that margin.
        where: how each claim begins, as "on digits, ".
    """
    loss = "a point" if points == 1 else f"{points:g} points"
    never, early, near, late = (
        f"{where}{text}"[0].upper() + f"{where}{text}"[1:]
        for text in (
            f"predictive momentum never loses {loss} or more against PyTorch's.",
            "early at a large batch predictive momentum is more accurate than PyTorch's by more than 5 points.",
            "the gap of predictive momentum is about that of the best fixed momentum of each layer and step, known in "
            "hindsight.",
            "at the end of a one-cycle schedule, where the learning rate falls to 0, predictive momentum is late: its "
            "gap is more than a quarter larger than that of the best fixed one.",
        )
    )
    return (
        Claim("never_worse", never, score(find_gains, "accuracy", EACH, scale=100), above(-points, "points", reason),
              answers=("H12",)),
        Claim("better_early", early,
              score(find_gains, "accuracy", EACH, scale=100, panel=share_name(EARLY), batch_size=MANY),
              above(5.0, "points", "what nobody would give away"), answers=("Q6",)),
        Claim("near_the_best", near, score_times(), below(1.25, "times", FLAT), answers=("Q10", "H12")),
        Claim("late_where_the_rate_ends", late, score_times(LATE, **{"optimizer.schedule": "onecycle"}),
              above(1.25, "times", "the same margin"), answers=("Q6", "Q10")),
    )  # fmt: skip
