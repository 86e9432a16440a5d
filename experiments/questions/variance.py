"""What do n/(n−1), pooling and weights of batches change in the variance, and when does it matter?

Ioffe & Szegedy 2015, algorithm 2: the mean of unbiased batch variances, n/(n−1), which is right for independent values;
the pixels of an image resemble each other.
"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, below, within
from bnlab.harness.reporting.frames import OtherThan, score
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis
from experiments.margins import SIX_IMAGES

EACH, LINE = ("panel", "batch_size"), ("panel", "batch_size", "estimator", "momentum")
SAME, RATIO = within(-0.3, 0.3, "points", SIX_IMAGES), Axis("variance / exact variance")


def score_gain(estimator: str, against: str, *sizes: int) -> Score:
    """Points of accuracy that an estimator gains against another one."""
    return score("evaluations", "accuracy", EACH, at=1.0, against=against, scale=100, estimator=estimator,
                 batch_size=sizes)  # fmt: skip


EXPERIMENT = Experiment(
    answers=("F19", "Q3", "Q9", "H6"),
    figures={
        "ratio": Figure(
            "Variance over the exact population variance",
            "Update_bn, swa and precise BN are measured again on frozen weights, the others are running; averaged over "
            "channels and layers. Averages of batch variances leave out how the batches' means differ.",
            score("gaps", "var_ratio", LINE, at=1.0, average="layer", estimator=OtherThan("exact")),
            Curves("batch_size", "estimator", RATIO)),
        "layers": Figure(
            "The mean of unbiased batch variances over the exact variance, by layer",
            "Of an epoch's batches at the end of training, averaged over channels; at 1 the correction is right.",
            score("gaps", "var_ratio", (*EACH, "depth"), at=1.0, estimator="update_bn"),
            Curves("batch_size", "depth", RATIO)),
    },
    claims={
        "correction_is_small": Claim(
            "The correction n/(n−1) changes the running variance by less than 2%.",
            score("gaps", "var_ratio", EACH, at=1.0, against="ema_biased", ratio=True, average="layer", geometric=True,
                  estimator="ema"),
            within(1.0 / 1.02, 1.02, "times", "2% is little against a loss of up to 1/B"), answers=("Q3",)),
        "correction_costs_nothing": Claim(
            "Accuracy under the EMA is the same with the correction n/(n−1) and without it, to 0.3 points.",
            score_gain("ema", "ema_biased", 2, 4, 16, 64), SAME, answers=("Q3",)),
        "pooled_is_nearer_when_frozen": Claim(
            "On frozen weights at tiny batches, the variance of pooled batches is nearer to the exact one than the "
            "mean of batch variances, in layers behind others.",
            score("gaps", "var_gap", EACH, at=1.0, against="update_bn", ratio=True, average="layer", geometric=True,
                  estimator="precise", batch_size=(2, 4), depth=OtherThan(1)),
            below(1.0, "times", "at 1 both are as near; in the first layer pooling is exact"), ("Q3", "Q9", "H6")),
        "pooling_gains": Claim(
            "On frozen weights at tiny batches, pooling batches gains accuracy against averaging their variances.",
            score_gain("precise", "update_bn", 2, 4),
            above(0.0, "points gained", "no gain at all is the other answer"), answers=("Q3", "Q9", "H6")),
        "weights_cost_nothing": Claim(
            "Whether a smaller last batch counts less does not change accuracy, to 0.3 points.",
            score_gain("swa", "update_bn", 16, 64), SAME, answers=("Q9",)),
    },
)  # fmt: skip
