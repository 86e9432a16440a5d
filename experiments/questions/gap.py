"""What is left of the gap at the end of training, from tiny to huge batches, and what does it cost?

Wu & Johnson 2021, figure 4: near zero at an adequate batch. RegularizedBN (arXiv 2210.05153): how far the statistics of
inference are from those of single training batches, by step and layer.
"""

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, above, below, within
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import LOST, Axis, Curves
from experiments.margins import COST_OF_EMA, EACH, HARDLY_SEEN, OVER_LAYERS, SIX_IMAGES

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
            "Of means, over channels and a few training batches; momentum 0.1. Above 1 its lag and noise add to it.",
            score("gaps", "tid_mean", ("panel", "depth", "epoch"), against="exact", ratio=True, geometric=True,
                  estimator="ema", momentum=0.1, batch_size=(4, 64, 1024)),
            Curves("epoch", "depth", Axis("EMA's distance / exact one's", log=True))),
    },
    claims={
        "nothing_at_adequate_batch": Claim(
            "At tiny and moderate batches PyTorch's momentum costs less than 0.3 points of accuracy.",
            score("evaluations", "accuracy", EACH, at=1.0, batch_size=(4, 16, 64, 256), **COST_OF_EMA),
            within(-0.3, 0.3, "points", SIX_IMAGES), ("Q2", "Q8", "Q11", "Q14", "Q16", "H2")),
        **{f"{kind}s_are_near_late": Claim(
            f"At the end of training PyTorch's running {kind}s are nearer to exact ones than 0.1 {unit}.",
            score("gaps", gap, EACH, at=1.0, estimator="ema", momentum=0.1, **OVER_LAYERS),
            below(0.1, unit, "such an error of all of them costs accuracy, see `tolerance`"), ("Q8",))
            for kind, gap, unit in (("mean", "mean_gap", "σ"), ("variance", "var_gap", "in logarithm"))},
        "lag_costs_when_huge": Claim(
            "At a huge batch, with few steps, PyTorch's momentum costs accuracy.",
            score("evaluations", "accuracy", EACH, at=1.0, batch_size=1024, **COST_OF_EMA),
            above(0.3, "points", SIX_IMAGES), ("Q8", "Q11", "Q16", "H2")),
        "ema_adds_early": Claim(
            "Early at a huge batch the EMA's mean is much farther from those of single batches than the exact mean is.",
            score("gaps", "tid_mean", EACH, at=0.1, against="exact", ratio=True, estimator="ema", momentum=0.1,
                  batch_size=1024, **OVER_LAYERS), above(1.25, "times", HARDLY_SEEN), ("Q8",)),
    },
)  # fmt: skip
