"""What is left of the gap at the end of training, from tiny to huge batches, and what does it cost?

Wu & Johnson 2021, figure 4: near zero at an adequate batch, and the population wins at small ones. RegularizedBN (arXiv
2210.05153): how far the statistics of inference are from those of single training batches, by step and layer.
"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, within
from bnlab.harness.reporting.frames import DEFAULT_MOMENTUM, score
from bnlab.harness.reporting.plots import LOST, Curves, HeatMap
from bnlab.harness.reporting.style import Axis
from experiments.margins import SIX_IMAGES

EACH = ("panel", "batch_size")


def score_loss(*sizes: int) -> Score:
    """Points of accuracy that PyTorch's momentum loses against exact statistics of the same network."""
    return score("evaluations", "accuracy", EACH, at=1.0, against="exact", scale=-100,
                 estimator="ema", momentum=DEFAULT_MOMENTUM, batch_size=sizes)  # fmt: skip


EXPERIMENT = Experiment(
    answers=("F4", "F11", "Q2", "Q8", "Q11", "Q14", "Q16", "H2"),
    figures={
        "cost": Figure(
            "Accuracy lost at the end of training, by batch size",
            "Test accuracy of the same network under exact statistics minus that under the EMA; above 0 the EMA loses.",
            score("evaluations", "accuracy", (*EACH, "momentum"), at=1.0, against="exact", scale=-100, estimator="ema"),
            Curves("batch_size", "momentum", LOST)),
        "added": Figure(
            "The EMA's distance from single batches, against that of exact statistics",
            "Of means, averaged over channels and a few batches of the training's size at the same weights; momentum "
            "0.1. At 1 both are as near; above, the EMA's lag and noise add to the distance.",
            score("gaps", "tid_mean", ("panel", "layer", "epoch"), against="exact", ratio=True, geometric=True,
                  estimator="ema", momentum=DEFAULT_MOMENTUM, batch_size=(4, 64, 1024)),
            HeatMap("epoch", "layer", Axis("EMA's distance / exact one's", log=True))),
    },
    claims={
        "nothing_at_adequate_batch": Claim(
            "At moderate batches PyTorch's momentum costs less than 0.3 points of accuracy.",
            score_loss(16, 64, 256), within(-0.3, 0.3, "points", SIX_IMAGES),
            answers=("Q2", "Q8", "Q11", "Q14", "Q16", "H2")),
        "population_wins_when_tiny": Claim(
            "At a tiny batch PyTorch's momentum costs accuracy.",
            score_loss(4), above(0.0, "points", "no cost at all is the other answer"), answers=("Q11",)),
        "lag_costs_when_huge": Claim(
            "At a huge batch, with few steps, PyTorch's momentum costs accuracy.",
            score_loss(1024), above(0.3, "points", SIX_IMAGES), answers=("Q8", "Q11", "Q16", "H2")),
        "ema_adds_early": Claim(
            "Early at a huge batch the EMA's mean is much farther from those of single batches than the exact mean is.",
            score("gaps", "tid_mean", EACH, at=0.1, against="exact", ratio=True, average="layer", geometric=True,
                  estimator="ema", momentum=DEFAULT_MOMENTUM, batch_size=1024),
            above(1.25, "times", "a quarter more is hardly seen in accuracy"), answers=("Q8",)),
    },
)  # fmt: skip
