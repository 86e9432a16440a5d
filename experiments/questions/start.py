"""Does it matter that running averages start at 0 and 1, in trainings of 10 to 1,000 steps?"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, within
from bnlab.harness.reporting.frames import OtherThan, Rows, rows, score
from bnlab.harness.reporting.plots import GAP, LOST, EstimatorCurves
from experiments.margins import SIX_IMAGES

SHARES = (1.0,)  # of the training
KEYS = ("panel", "steps", "estimator", "momentum")
DECAYED = (
    "The start's weight is 1 minus the momentum, to the power of the number of steps: after 10 steps 0.35 with "
    "momentum 0.1, and 0.90 with 0.01."
)


def find_pairs(table: str, momentum: float) -> Rows:
    """Rows of averages with and without the start, of networks that differ in the number of their steps."""
    return lambda tables: rows(tables, table, SHARES, by=("steps",), momentum=momentum)


def score_times(momentum: float, *steps: int) -> Score:
    """How many times the gap is with the start what it is when this is divided out."""
    return score(find_pairs("gaps", momentum), "mean_gap", KEYS, against="ema_debiased", ratio=True, average="layer",
                 geometric=True, estimator="ema", steps=steps)  # fmt: skip


def score_cost(momentum: float, *steps: int) -> Score:
    """Points of accuracy that the start costs."""
    return score(find_pairs("evaluations", momentum), "accuracy", KEYS, against="ema_debiased", scale=-100,
                 estimator="ema", steps=steps)  # fmt: skip


EXPERIMENT = Experiment(
    name="start",
    question="Does it matter that running averages start at 0 and 1, and what does the correction bring?",
    answers=("H8", "Q5"),
    source="torch.nn.BatchNorm starts at mean 0 and variance 1; haiku divides the start out (zero_debias).",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure("gap", "The gap at the end of short and long trainings",
               "Distance of the mean from the exact population mean, in standard deviations, geometric mean over "
               "layers; each number of steps is a training of its own, with its own schedule. " + DECAYED,
               score("gaps", "mean_gap", KEYS, SHARES, average="layer", geometric=True, estimator=OtherThan("exact")),
               EstimatorCurves(GAP, x="steps")),
        Figure("cost", "Accuracy lost at the end of short and long trainings",
               "Test accuracy of the same network under exact statistics minus that under the average. Where "
               "networks are near chance little can be lost.",
               score("evaluations", "accuracy", KEYS, SHARES, against="exact", scale=-100),
               EstimatorCurves(LOST, zero="exact population", x="steps")),
    ),
    claims=(
        Claim("start_is_far", "After 10 steps the start at 0 and 1 makes the gap of PyTorch's momentum larger.",
              score_times(0.1, 10), above(1.25, "times", "a quarter more is hardly seen in accuracy")),
        Claim("start_stays_far", "With a momentum of 0.01 the start at 0 and 1 makes the gap larger for 100 steps.",
              score_times(0.01, 10, 30, 100), above(1.25, "times", "a quarter more is hardly seen in accuracy")),
        Claim("start_costs", "With a momentum of 0.01 the start at 0 and 1 costs accuracy after 100 steps.",
              score_cost(0.01, 100), above(1.0, "points", "what decides between two networks of this size")),
        Claim("start_is_forgotten", "With PyTorch's momentum the start at 0 and 1 costs less than 0.3 points of "
              "accuracy from 100 steps on.",
              score_cost(0.1, 100, 300, 1000),
              within(-0.3, 0.3, "points lost", SIX_IMAGES)),
    ),
)  # fmt: skip
