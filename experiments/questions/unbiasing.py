"""Is the variance n/(n−1), is it averaged or pooled, and are batches weighted: what of it matters, and when?"""

from __future__ import annotations

from typing import Any

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, below, within
from bnlab.harness.reporting.frames import OtherThan, score
from bnlab.harness.reporting.plots import AGAINST_EXACT, VARIANCE_GAP, EstimatorCurves
from bnlab.harness.reporting.style import Axis
from experiments.margins import SIX_IMAGES

SHARES = (1.0,)  # of the training
SMALL, UNEVEN = (2, 4), (16, 64)  # batch sizes; the second leave a smaller last batch in each epoch
EACH, EVERY = ("panel", "batch_size"), ("panel", "batch_size", "estimator", "momentum")
MARGIN = ("points", SIX_IMAGES)


def score_times(column: str, estimator: str, against: str, *sizes: int, **layers: Any) -> Score:
    """How many times another estimator's value this one's is, of the same layer: geometric mean over layers."""
    return score("gaps", column, EACH, SHARES, against=against, ratio=True, average="layer", geometric=True,
                 estimator=estimator, batch_size=sizes, **layers)  # fmt: skip


def score_gain(estimator: str, against: str, *sizes: int) -> Score:
    """Points of accuracy that an estimator gains against another one."""
    return score("evaluations", "accuracy", EACH, SHARES, against=against, scale=100,
                 estimator=estimator, batch_size=sizes)  # fmt: skip


EXPERIMENT = Experiment(
    name="unbiasing",
    question="What do n/(n−1), pooling and weights of batches change in the variance, and when does it matter?",
    answers=("Q3", "Q9", "H6"),
    source="Ioffe & Szegedy 2015, algorithm 2: the mean of unbiased batch variances, m/(m−1).",
    columns={"gaps": ("layer", "depth", "mean_gap", "var_gap", "var_ratio"), "evaluations": ("accuracy",)},
    figures=(
        Figure("ratio", "Variance over the exact population variance",
               "Ratio of variances, averaged over channels and layers, at the end of training; below 1 the variance is "
               "too small. Averages of batch variances leave out the variance between the batches' means, which "
               "pooling keeps; n/(n−1) corrects for it only if all values of a batch are independent, and those of "
               "one image are not. Update_bn, swa and precise BN are measured again on frozen weights, the others are "
               "running.",
               score("gaps", "var_ratio", EVERY, SHARES, average="layer", estimator=OtherThan("exact")),
               EstimatorCurves(Axis("variance / exact variance"), x="batch_size")),
        Figure("gap", "The variance's distance from the exact one",
               "Root mean square over channels of the logarithm of the ratio, geometric mean over layers but the "
               "first, where precise and exact are the same: bias and, for the running ones, the noise of their last "
               "batches.",
               score("gaps", "var_gap", EVERY, SHARES, average="layer", geometric=True, estimator=OtherThan("exact"),
                     depth=OtherThan(1)),
               EstimatorCurves(VARIANCE_GAP, x="batch_size")),
        Figure("cost", "Accuracy against that under exact statistics, by batch size",
               "Test accuracy at the end of training minus that of the same network under exact statistics; below 0 is "
               "a loss.",
               score("evaluations", "accuracy", EVERY, SHARES, against="exact", scale=100),
               EstimatorCurves(AGAINST_EXACT, zero="exact population", x="batch_size")),
    ),
    claims=(
        Claim("running_variance_is_low", "At tiny batches the running variance is too small by 2% and more, in spite "
              "of the correction n/(n−1).",
              score("gaps", "var_ratio", EACH, SHARES, average="layer", estimator="ema", batch_size=SMALL),
              below(0.98, "times", "the loss is up to 1/B, a half or a quarter; 2% is what sampling might do"),
              answers=("Q3",)),
        Claim("correction_is_small", "The correction n/(n−1) changes the running variance by less than 2%.",
              score_times("var_ratio", "ema", "ema_biased", 2, 4, 16, 64),
              within(1.0 / 1.02, 1.02, "times", "2% is little against a loss of up to 1/B"),
              answers=("Q3",)),
        Claim("correction_costs_nothing", "Accuracy under the EMA is the same with the correction n/(n−1) of the "
              "variance and without it, to 0.3 points.",
              score_gain("ema", "ema_biased", 2, 4, 16, 64), within(-0.3, 0.3, *MARGIN),
              answers=("Q3",)),
        Claim("pooled_is_nearer", "At tiny batches the variance of a running average that pools batches is nearer to "
              "the exact one than that of PyTorch's running average.",
              score_times("var_gap", "ema_pooled", "ema", *SMALL), below(1.0, "times", "at 1 both are as near"),
              answers=("Q3", "Q9", "H6")),
        Claim("pooled_is_nearer_when_frozen", "On frozen weights at tiny batches, the variance of pooled batches is "
              "nearer to the exact one than the mean of batch variances, in layers behind others.",
              score_times("var_gap", "precise", "update_bn", *SMALL, depth=OtherThan(1)),
              below(1.0, "times", "at 1 both are as near; in the first layer, which is left out, pooling is exact"),
              answers=("Q3", "Q9", "H6")),
        Claim("pooling_gains", "On frozen weights at tiny batches, pooling batches gains accuracy against averaging "
              "their variances.",
              score_gain("precise", "update_bn", *SMALL),
              above(0.0, "points gained", "no gain at all is the other answer"),
              answers=("Q3", "Q9", "H6")),
        Claim("weights_change_nothing", "Whether a smaller last batch counts less does not change the variance, to 1%.",
              score_times("var_ratio", "swa", "update_bn", *UNEVEN),
              within(1 / 1.01, 1.01, "times", "one batch of hundreds differs in its size"),
              answers=("Q9",)),
        Claim("weights_cost_nothing", "Whether a smaller last batch counts less does not change accuracy, to 0.3 "
              "points.",
              score_gain("swa", "update_bn", *UNEVEN), within(-0.3, 0.3, *MARGIN),
              answers=("Q9",)),
    ),
)  # fmt: skip
