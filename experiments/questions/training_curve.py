"""Accuracy over training under running, precise and exact statistics: who is pessimistic, and when?"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, within
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import ACCURACY, AGAINST_EXACT, EstimatorCurves
from experiments.margins import A_POINT, SIX_IMAGES

SHARES = EARLY, _, LATE = (0.1, 0.55, 1.0)  # of the training, at which claims are decided
MODERATE, HUGE = 64, 1024  # images in a batch
BY, EACH = ("panel", "estimator", "momentum", "epoch"), ("panel", "batch_size", "momentum")
SAME = "All estimators are computed on the same networks at the same steps."
COSTS = above(1.0, "points", A_POINT)
HARMLESS = within(-1.0, 1.0, "points lost", "the same margin as for what costs something")


def score_loss(estimator: str, shares: tuple[float, ...], size: int) -> Score:
    """Points of accuracy that an estimator loses against exact statistics of the same network."""
    return score("evaluations", "accuracy", EACH, shares, against="exact", scale=-100,
                 estimator=estimator, batch_size=size)  # fmt: skip


def score_gain(estimator: str) -> Score:
    """Points of accuracy that an estimator gains early at a huge batch against PyTorch's running average."""
    return score("evaluations", "accuracy", EACH, (EARLY,), against="ema", scale=100,
                 estimator=estimator, batch_size=HUGE)  # fmt: skip


EXPERIMENT = Experiment(
    name="training_curve",
    question="How does accuracy under EMA, average, last batch, precise and exact statistics develop?",
    answers=("F1", "Q2", "Q5", "Q11", "Q14", "H2", "H11"),
    source="Wu & Johnson 2021, figure 1: evaluation with an EMA is pessimistic early and at a very large batch. Here "
    "networks with huge batches are near chance, one of 36 classes, after a tenth of training, whatever the "
    "statistics: little can be lost or gained yet.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("accuracy", "Test accuracy of the same weights under different statistics",
               "Test accuracy over training. Exact statistics show what the weights can do at that step. " + SAME,
               score("evaluations", "accuracy", BY, scale=100),
               EstimatorCurves(ACCURACY)),
        Figure("cost", "Test accuracy against that under exact population statistics",
               "Difference in test accuracy to the same network under exact statistics, paired; below 0 is a loss. "
               + SAME,
               score("evaluations", "accuracy", BY, against="exact", scale=100),
               EstimatorCurves(AGAINST_EXACT, zero="exact population")),
    ),
    claims=(
        Claim("ema_is_pessimistic_early", "Early at a huge batch, PyTorch's running average costs accuracy.",
              score_loss("ema", (EARLY,), HUGE), COSTS,
              answers=("Q2", "Q11", "Q14", "H2")),
        Claim("exact_gains_nothing_late", "At the end of training at a moderate batch, exact statistics gain less than "
              "0.3 points of accuracy over PyTorch's running average.",
              score_loss("ema", (LATE,), MODERATE),
              within(-0.3, 0.3, "points", SIX_IMAGES),
              answers=("Q2", "Q11", "Q14", "H2")),
        Claim("last_batch_beats_ema_early", "Early at a huge batch, the last batch's moments alone gain accuracy "
              "against the EMA.",
              score_gain("last_batch"), above(0.0, "points gained", "at 0 both are as good"),
              answers=("H11",)),
        Claim("predictive_beats_ema_early", "Early at a huge batch, predictive momentum gains accuracy against the "
              "EMA.",
              score_gain("predictive"), above(0.0, "points gained", "at 0 both are as good"),
              answers=("Q2",)),
        Claim("cumulative_costs", "At a moderate batch the average of all batches costs accuracy.",
              score_loss("cumulative", SHARES, MODERATE), COSTS,
              answers=("Q5",)),
        Claim("last_batch_costs", "At a moderate batch the moments of the last batch alone cost accuracy.",
              score_loss("last_batch", SHARES, MODERATE), COSTS,
              answers=("H11",)),
        Claim("precise_is_exact", "At a moderate batch precise BN with 2,048 images costs less than a point of "
              "accuracy.",
              score_loss("precise(images=2048)", SHARES, MODERATE), HARMLESS,
              answers=("Q11", "Q14")),
        Claim("precise_is_exact_when_huge", "At a huge batch precise BN with 2,048 images costs less than a point of "
              "accuracy.",
              score_loss("precise(images=2048)", SHARES, HUGE), HARMLESS,
              answers=("Q11", "Q14")),
    ),
)  # fmt: skip
