"""What do running averages cost, early and late in training?

PyTorch's momentum of 0.1 is used for any number of steps.
"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, within
from bnlab.harness.reporting.frames import DEFAULT_MOMENTUM, OtherThan, score
from bnlab.harness.reporting.plots import ACCURACY, GAP, Curves

SHARES = EARLY, LATE = (0.1, 1.0)  # of the training
EACH = ("panel", "batch_size")
CURVES, OVER_TIME = (*EACH, "momentum"), ("panel", "estimator", "momentum", "epoch")
MARK = (DEFAULT_MOMENTUM, "PyTorch's default")
MARGIN = ("points", "less than a point would decide between no two networks of this size")


def score_cost(share: float) -> Score:
    """Points of accuracy that PyTorch's momentum loses against exact statistics of the same network."""
    return score("evaluations", "accuracy", EACH, at=share, against="exact", scale=-100,
                 estimator="ema", momentum=DEFAULT_MOMENTUM)  # fmt: skip


EXPERIMENT = Experiment(
    answers=("Q2", "Q11", "H2", "H14"),
    figures={
        "gap": Figure(
            "How far the running mean is from the population mean",
            "Root-mean-square distance over channels, in standard deviations of the layer's input, geometric mean "
            "over layers; lower is better. Small momenta average many batches: little noise, but they lag behind the "
            "weights and keep their start of 0 for long. {schedule}",
            score("gaps", "mean_gap", CURVES, at=SHARES, average="layer", geometric=True, estimator="ema"),
            Curves("momentum", "batch_size", GAP, mark=MARK)),
        "estimators": Figure(
            "Other averages of the same batches",
            "Distance of the estimated mean from the exact population mean, in standard deviations, geometric mean "
            "over layers but the first, over training; where an average has a momentum it is PyTorch's 0.1; Kalman and "
            "predictive momentum choose theirs. Precise BN is measured again on the training set, all others come from "
            "the recorded batches; in the first layer precise and exact are the same. {schedule}",
            score("gaps", "mean_gap", OVER_TIME, average="layer", geometric=True, depth=OtherThan(1),
                  estimator=OtherThan("exact"), momentum=(DEFAULT_MOMENTUM, None)),
            Curves("epoch", "estimator", GAP)),
        "accuracy": Figure(
            "What the gap costs: test accuracy of the same networks",
            "Each network is evaluated under its running averages for every momentum, and under exact population "
            "statistics (dashed); nothing else differs. Bands show how networks differ; the distance to the dashed "
            "line of the same colour is the cost, which is tested in pairs.",
            score("evaluations", "accuracy", CURVES, at=SHARES, scale=100, estimator=("ema", "exact")),
            Curves("momentum", "batch_size", ACCURACY, level="exact statistics", mark=MARK)),
    },
    claims={
        "default_costs_early": Claim(
            "After a tenth of training, PyTorch's momentum costs accuracy.",
            score_cost(EARLY), above(1.0, *MARGIN), answers=("Q2", "Q11", "H2")),
        "default_is_harmless_late": Claim(
            "At the end of training PyTorch's momentum costs less than a point of accuracy.",
            score_cost(LATE), within(-1.0, 1.0, *MARGIN), answers=("Q2", "Q11", "H2")),
        "predictive_is_nearer": Claim(
            "On average over layers and all measured steps, the gap of PyTorch's momentum is larger than that of "
            "predictive momentum.",
            score("gaps", "mean_gap", ("batch_size",), against="predictive", ratio=True, average=("step", "layer"),
                  geometric=True, estimator="ema", momentum=DEFAULT_MOMENTUM),
            above(1.0, "times", "at 1 the plain momentum is as near"), answers=("H14",)),
    },
)  # fmt: skip
