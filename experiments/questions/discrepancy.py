"""How far are the statistics of inference from those of the batches that the network is trained with?"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, below, within
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import HeatMap
from bnlab.harness.reporting.style import Axis

SHARES = EARLY, LATE = (0.1, 1.0)  # of the training, at which claims are decided
EACH, FIELD = ("panel", "batch_size"), ("panel", "layer", "epoch")
READ = "Averaged over channels and a few batches of the training's size at the same weights; layers downwards."


def score_times(share: float, *sizes: int) -> Score:
    """How many times as far from single batches the EMA's mean is as the exact one, over layers."""
    return score("gaps", "tid_mean", EACH, (share,), against="exact", ratio=True, average="layer", geometric=True,
                 estimator="ema", batch_size=sizes)  # fmt: skip


def score_exact(size: int) -> Score:
    """Distance of the exact mean from that of single batches, over layers."""
    return score("gaps", "tid_mean", EACH, SHARES, average="layer", estimator="exact", batch_size=size)


EXPERIMENT = Experiment(
    name="discrepancy",
    question="How far are the statistics of inference from those of single training batches, by step and layer?",
    answers=("F11", "Q8"),
    source="RegularizedBN (arXiv 2210.05153): the training-inference discrepancy, by step and layer.",
    columns={"gaps": ("layer", "tid_mean", "tid_std")},
    figures=(
        Figure("mean", "Distance of the EMA's mean from that of single batches",
               "In standard deviations of the batch. " + READ + " What single batches differ by among themselves is "
               "part of it, most at a small batch.",
               score("gaps", "tid_mean", FIELD, estimator="ema"),
               HeatMap("epoch", "layer", Axis("|mean − batch mean| (σ)", log=True))),
        Figure("deviation", "Distance of the EMA's standard deviation from that of single batches",
               "Relative to that of the batch. " + READ,
               score("gaps", "tid_std", FIELD, estimator="ema"),
               HeatMap("epoch", "layer", Axis("|σ / batch σ − 1|", log=True))),
        Figure("added", "The EMA's distance from single batches, against that of exact statistics",
               "At 1 running averages are as near to single batches as exact statistics are; above, their lag and "
               "noise add to it. " + READ,
               score("gaps", "tid_mean", FIELD, against="exact", ratio=True, geometric=True, estimator="ema"),
               HeatMap("epoch", "layer", Axis("EMA's distance / exact one's", log=True))),
    ),
    claims=(
        Claim("ema_adds_early", "Early at a huge batch the EMA's mean is much farther from the means of single batches "
              "than the exact mean is.",
              score_times(EARLY, 1024), above(1.25, "times", "a quarter more is hardly seen in accuracy")),
        Claim("ema_adds_nothing_late", "At the end of training, at tiny and moderate batches, the EMA's mean is about "
              "as far from the means of single batches as the exact mean is.",
              score_times(LATE, 4, 64), within(0.9, 1.1, "times", "a tenth of a distance that training itself has")),
        Claim("tiny_batches_differ", "The means of tiny batches are more than a tenth of a standard deviation from the "
              "exact mean.",
              score_exact(4), above(0.1, "σ", "a tenth is about what a hundred independent values are uncertain by")),
        Claim("huge_batches_agree", "The means of huge batches are less than a tenth of a standard deviation from the "
              "exact mean.",
              score_exact(1024), below(0.1, "σ", "the same margin")),
    ),
)  # fmt: skip
