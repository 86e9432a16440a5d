"""Which momentum, and does theory know the best one?

A small momentum averages the noise of many batches and lags behind; a large one follows, and is noisy.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnlab import theory
from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, below
from bnlab.harness.reporting.frames import DEFAULT_MOMENTUM, average, lowest, other_seeds, rows, score
from bnlab.harness.reporting.plots import ACCURACY, GAP, Curves

SHARES = EARLY, _, LATE = (0.2, 0.55, 1.0)  # of the training
CURVE, POINT, NETWORK = ("panel", "batch_size"), ("panel", "batch_size", "momentum"), ("panel", "batch_size", "seed")
NOISE, MARK = ("mean_drift", "mean_noise", "mean_level"), (DEFAULT_MOMENTUM, "PyTorch's default")


def find_factors(tables: Tables) -> pd.DataFrame:
    """By which factor theory, which knows the other seeds' batch moments, misses each layer's best momentum."""
    layers = other_seeds(rows(tables, "drift", SHARES), ("step", *NOISE), (*CURVE, "layer"))
    grid = layers.merge(pd.DataFrame({"momentum": np.geomspace(1e-4, 1, 401)}), how="cross")
    expected = grid.assign(mean_gap=theory.random_walk_gap(*grid[["momentum", "step", *NOISE]].to_numpy().T))
    predicted = lowest(expected, "mean_gap", (*NETWORK, "layer"))
    measured = lowest(rows(tables, "gaps", SHARES, estimator="ema"), "mean_gap", (*NETWORK, "layer"))
    both = measured.merge(predicted, on=[*NETWORK, "layer"], suffixes=("", "_predicted"))
    factor = both["momentum_predicted"] / both["momentum"]
    return both.assign(factor=np.maximum(factor, 1 / factor)).query("momentum < 1 or momentum_predicted <= 0.95")


def find_ends(tables: Tables) -> pd.DataFrame:
    """Gaps at both ends of the sweep; as that of momentum 0 the smallest one between them."""
    gaps = average(rows(tables, "gaps", SHARES, estimator="ema"), "mean_gap", (*NETWORK, "momentum"), geometric=True)
    ends = gaps["momentum"].isin((0.001, 1.0))
    return pd.concat([gaps[ends], lowest(gaps[~ends], "mean_gap", NETWORK).assign(momentum=0.0)])


EXPERIMENT = Experiment(
    answers=("F16", "Q4", "Q5", "Q6", "Q10", "H1", "H13"),
    figures={
        "gap": Figure(
            "Gap against the momentum",
            "Distance of the EMA's mean from the exact one, in standard deviations, geometric mean over layers: lag on "
            "the left, noise of single batches on the right.",
            score("gaps", "mean_gap", POINT, at=SHARES, average="layer", geometric=True, estimator="ema"),
            Curves("momentum", "batch_size", GAP, mark=MARK)),
        "accuracy": Figure(
            "Test accuracy against the momentum",
            "The same networks under the EMA for every momentum, and under exact statistics (dashed).",
            score("evaluations", "accuracy", POINT, at=SHARES, scale=100, estimator=("ema", "exact")),
            Curves("momentum", "batch_size", ACCURACY, level="exact statistics", mark=MARK)),
    },
    claims={
        "gap_is_u_shaped": Claim(
            "With a momentum of 0.001, and with one of 1, the gap is larger than with the best between them.",
            score(find_ends, "mean_gap", POINT, against=0.0, along="momentum", matching=("batch_size", "seed"),
                  ratio=True, geometric=True),
            above(1.25, "times", "the smallest of many gaps is a little smaller by chance"), ("Q6", "Q10", "H1")),
        "plain_average_is_farther": Claim(
            "The average of all batches has a larger gap than PyTorch's running average.",
            score(lambda tables: rows(tables, "gaps", SHARES, momentum=(DEFAULT_MOMENTUM, None)), "mean_gap", CURVE,
                  against="ema", ratio=True, average="layer", geometric=True, estimator="cumulative"),
            above(1.0, "times", "at 1 both are as near"), answers=("Q5",)),
        "mistake_costs_late": Claim(
            "At the end of training a momentum of 0.9, which is 0.1 in the other convention, costs accuracy.",
            score("evaluations", "accuracy", CURVE, at=LATE, against=DEFAULT_MOMENTUM, along="momentum", scale=-100,
                  estimator="ema", momentum=0.9), above(0.0, "points", "no cost is the other answer"), answers=("Q4",)),
        "mistake_gains_early": Claim(
            "Early at a large batch a momentum of 0.9, which is 0.1 in the other convention, gains accuracy.",
            score("evaluations", "accuracy", CURVE, at=EARLY, against=DEFAULT_MOMENTUM, along="momentum", scale=-100,
                  estimator="ema", momentum=0.9, batch_size=256),
            below(0.0, "points lost", "no gain is the other answer"), answers=("Q4",)),
        "theory_knows_momentum": Claim(
            "Theory's momentum from other seeds misses the best one by a factor below 2, up or down, as a geometric "
            "mean over layers; layers where both are at 1 are left out.",
            score(find_factors, "factor", CURVE, average="layer", geometric=True),
            below(2.0, "times", "not the hypothesis's 1.5: the sweep's steps are up to 2.5 times"), ("Q10", "H13")),
    },
)  # fmt: skip
