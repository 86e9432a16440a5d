"""Which momentum? The gap and the accuracy of the running average against its momentum."""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import DEFAULT_MOMENTUM, average, check_coverage, interval, lowest, rows, score
from bnlab.harness.reporting.plots import ACCURACY, GAP, Curves

SHARES = EARLY, _, LATE = (0.2, 0.55, 1.0)  # of the training
MISTAKEN = 0.9  # the default read in the other convention: the weight of the new batch taken for that of the old
ENDS = (0.001, 1.0)  # of the sweep
CURVE, POINT, NETWORK = ("panel", "batch_size"), ("panel", "batch_size", "momentum"), ("panel", "batch_size", "seed")
MARK = (DEFAULT_MOMENTUM, "PyTorch's default")


def find_plain(tables: Tables) -> pd.DataFrame:
    """Gaps of PyTorch's running average and of the average of all batches."""
    return rows(tables, "gaps", SHARES, estimator=("ema", "cumulative"), momentum=(DEFAULT_MOMENTUM, None))


def score_ends(tables: Tables) -> pd.DataFrame:
    """How many times the smallest gap between the ends of the sweep are those at its ends."""
    gaps = average(rows(tables, "gaps", SHARES, estimator="ema"), "mean_gap", (*NETWORK, "momentum"), geometric=True)
    check_coverage(gaps, ["panel", "batch_size"], ["seed"], ["momentum"])
    ends = gaps["momentum"].isin(ENDS)
    best = lowest(gaps[~ends], "mean_gap", NETWORK).set_index([*NETWORK])["mean_gap"].rename("best")
    times = gaps[ends].join(best, on=[*NETWORK], how="inner")
    return interval(times.assign(times=times["mean_gap"] / times["best"]), "times", POINT, geometric=True)


def score_mistake(share: float, *sizes: int) -> Score:
    """Points of accuracy that the EMA loses where its momentum is read in the other convention."""
    return score("evaluations", "accuracy", CURVE, (share,), against=DEFAULT_MOMENTUM, along="momentum", scale=-100,
                 estimator="ema", momentum=MISTAKEN, batch_size=sizes)  # fmt: skip


EXPERIMENT = Experiment(
    name="momentum",
    question="Which momentum?",
    answers=("F16", "Q4", "Q5", "Q6", "Q10", "H1"),
    source="A small momentum averages the noise of many batches and lags behind; a large one follows, and is noisy. "
    "After a fifth of training at batch 256 fewer than one test image in five is right under exact statistics, one in "
    "36 by chance: little can be lost or gained yet.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure("gap", "Gap against the momentum",
               "Distance of the EMA's mean from the exact population mean, in standard deviations, geometric mean over "
               "layers: lag on the left, noise of single batches on the right.",
               score("gaps", "mean_gap", POINT, SHARES, average="layer", geometric=True, estimator="ema"),
               Curves("momentum", "batch_size", GAP, mark=MARK)),
        Figure("accuracy", "Test accuracy against the momentum",
               "The same networks evaluated under the EMA for every momentum, and under exact population statistics "
               "(dashed). Bands show how networks differ; the distance to the dashed line of the same colour is the "
               "cost. Momentum is the weight of the new batch; 0.9 is what 0.1 becomes where it is the weight of the "
               "old average. Claims compare 0.9 with 0.1 in each network.",
               score("evaluations", "accuracy", POINT, SHARES, scale=100, estimator=("ema", "exact")),
               Curves("momentum", "batch_size", ACCURACY, level="exact statistics", mark=MARK)),
    ),
    claims=(
        Claim("gap_is_u_shaped", "With the smallest and the largest momentum of the sweep, 0.001 and 1, the EMA's gap "
              "is larger than with the best one between them.",
              score_ends, above(1.25, "times", "the smallest of many gaps lies a little below any other by chance"),
              answers=("Q6", "Q10", "H1")),
        Claim("plain_average_is_farther", "The average of all batches has a larger gap than PyTorch's running average.",
              score(find_plain, "mean_gap", CURVE, against="ema", ratio=True, average="layer", geometric=True),
              above(1.0, "times", "at 1 both are as near"),
              answers=("Q5",)),
        Claim("mistake_costs_late", "At the end of training a momentum of 0.9, which is 0.1 in the other convention, "
              "costs accuracy against 0.1.",
              score_mistake(LATE, 16, 64, 256), above(0.0, "points", "no cost at all is the other answer"),
              answers=("Q4",)),
        Claim("mistake_gains_early", "Early at a large batch a momentum of 0.9, which is 0.1 in the other convention, "
              "gains accuracy against 0.1.",
              score_mistake(EARLY, 256), below(0.0, "points lost", "no gain at all is the other answer"),
              answers=("Q4",)),
    ),
)  # fmt: skip
