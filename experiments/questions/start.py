"""Does it matter that running averages start at 0 and 1, and what does the correction bring?

torch.nn.BatchNorm starts at mean 0 and variance 1; haiku divides the start out (zero_debias).
"""

from typing import Any

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Score, above, below, within
from bnlab.harness.reporting.frames import RATIO_OVER_LAYERS, OtherThan, rows, score
from bnlab.harness.reporting.plots import GAP, Curves
from experiments.margins import A_POINT, ALL_LAYERS, HARDLY_SEEN, SIX_IMAGES, find_gaps

EACH = ("panel", "steps", "estimator", "momentum")
QUARTER = above(1.25, "times", HARDLY_SEEN)


def score_start(table: str, value: str, momentum: float, *steps: int, **how: Any) -> Score:
    """Score a value under the EMA, against that under the EMA from which the start is divided out."""
    return score(
        lambda tables: rows(tables, table, 1.0, ("steps",), momentum=momentum),
        value,
        EACH,
        against="ema_debiased",
        estimator="ema",
        steps=steps,
        **how,
    )


EXPERIMENT = Experiment(
    bears_on=("H8", "H2", "Q5"),
    columns=("accuracy", "mean_gap"),
    figures={"gap": Figure(
        "The gap at the end of short and long trainings",
        "Each number of steps is a training of its own. After 10 the start weighs 0.35 (momentum 0.1) or 0.90 (0.01). "
        f"{ALL_LAYERS}",
        score(lambda tables: find_gaps(tables, 1.0, by=("steps",), estimator=OtherThan("exact")), "mean_gap", EACH,
              geometric=True),
        Curves("steps", "estimator", GAP),
        Finding("In short trainings the start at 0 and 1 makes the gap larger", {"start_is_far": (),
                                                                                "start_stays_far": ()}))},
    claims={
        "start_is_far": Claim(
            "After 10 steps the start at 0 and 1 makes the gap of PyTorch's momentum larger behind the first layer.",
            score_start("gaps", "mean_gap", 0.1, 10, ratio=True, **RATIO_OVER_LAYERS), QUARTER),
        "start_stays_far": Claim(
            "With a momentum of 0.01 the start at 0 and 1 makes the gap behind the first layer larger for 100 steps.",
            score_start("gaps", "mean_gap", 0.01, 10, 30, 100, ratio=True, **RATIO_OVER_LAYERS), QUARTER),
        "start_costs": Claim(
            "With a momentum of 0.01 the start at 0 and 1 costs accuracy after 100 steps.",
            score_start("evaluations", "accuracy", 0.01, 100, scale=-100), above(1.0, "points", A_POINT)),
        "few_steps_cost": Claim(
            "At the end of short trainings, at a batch of 64, PyTorch's momentum costs less than 0.3 points against "
            "exact statistics (asked when seen).",
            score(lambda tables: rows(tables, "evaluations", 1.0, ("steps",), momentum=(0.1, None)), "accuracy",
                  ("panel", "steps"), against="exact", scale=-100, estimator="ema", momentum=0.1),
            within(-0.3, 0.3, "points", SIX_IMAGES), ("H8", "H2")),
        "plain_average_is_nearer": Claim(
            "After 10 steps the average of all batches has a smaller gap behind the first layer than PyTorch's (asked "
            "when seen).",
            score(lambda tables: rows(tables, "gaps", 1.0, ("steps",), momentum=(0.1, None)), "mean_gap",
                  ("panel", "steps"), against="ema", ratio=True, estimator="cumulative", steps=10, **RATIO_OVER_LAYERS),
            below(1.0, "times", "at 1 both are as near"), ("Q5",)),
        "start_is_forgotten": Claim(
            "With PyTorch's momentum the start at 0 and 1 costs less than 0.3 points of accuracy from 100 steps on.",
            score_start("evaluations", "accuracy", 0.1, 100, 300, 1000, scale=-100),
            within(-0.3, 0.3, "points lost", SIX_IMAGES)),
    },
)  # fmt: skip
