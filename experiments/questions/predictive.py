"""Is a momentum that forecasts the next batch as good as the best fixed one, which is known in hindsight only?

The noise of the batch that is forecast is the same for all momenta: the best forecast is the nearest.
"""

import math
from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Rule, Score, Tables, above, below
from bnlab.harness.reporting.frames import best_on_average, name_panels, over_best, paired, rows, score, select
from bnlab.harness.reporting.plots import TIMES_THE_BEST, Curves
from experiments.margins import A_POINT, AS_ACCURATE, AS_NEAR, FLAT, OVER_LAYERS, OVER_TIME, SIX_IMAGES, drop_chance

SHARES = (0.03, 0.1, 0.55, 1.0)  # of the training
NETWORK, EACH = ("data", "model", "batch_size", "schedule"), ("model", "panel", "batch_size", "schedule")
CHARACTERS: dict[str, Any] = {"data": "glyphs", "model": "cnn"}


def find_times(*shares: float) -> Score:
    """How many times the gap of the best fixed momentum of the layer and step, which is known in hindsight."""
    return lambda tables: over_best(rows(tables, "gaps", shares, NETWORK), "mean_gap")


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracy minus that under PyTorch's momentum in the same network; `step` is `constant` until its first step."""
    frame = rows(tables, "evaluations", SHARES, NETWORK, momentum=(0.1, None))
    frame = drop_chance(frame, ("data", *EACH)).query("schedule != 'step' or step > steps / 2")
    return paired(frame, "accuracy", against="ema")


def find_early(tables: Tables) -> pd.DataFrame:
    """Accuracy of predictive momentum after a tenth of training at a large batch, minus that under each other one."""
    frame = rows(tables, "evaluations", 0.1, NETWORK, estimator=("ema", "predictive"), batch_size=256)
    gains = paired(frame, "accuracy", against="predictive")
    return gains.assign(accuracy=-gains["accuracy"]).query("momentum in (0.1, 1.0)")


def find_losses(tables: Tables) -> pd.DataFrame:
    """Accuracy that the forecast gains against the fixed momentum with the highest mean over seeds."""
    both = rows(tables, "evaluations", SHARES[2:], estimator=("ema", "predictive"), schedule="onecycle", **CHARACTERS)
    best = best_on_average(select(both, estimator="ema"), "accuracy", ("panel", "batch_size"))
    return paired(pd.concat([best, select(both, estimator="predictive")]), "accuracy", against="ema")


def make_claims(end: str, where: str, points: float, reason: str, **networks: Any) -> dict[str, Claim]:
    """What the forecasts' choice is to be worth in these networks; `end` is added to the claims' names."""
    wanted = {"estimator": "predictive", **networks}
    return {
        f"never_worse{end}": Claim(
            f"{where} predictive momentum never loses {points:g} points or more against PyTorch's.",
            score(find_gains, "accuracy", EACH, scale=100, **wanted),
            Rule(-points, math.inf, "points", reason, together=True), ("Q10",)),
        f"near_the_best{end}": Claim(
            f"{where} the gap of predictive momentum is about that of the best fixed one of each layer and step.",
            score(find_times(), "mean_gap", ("model", "batch_size", "schedule"), average=("layer", "epoch"),
                  geometric=True, **wanted), below(1.25, "times", FLAT), ("Q10", "H12", "H14")),
        f"late_where_the_rate_ends{end}": Claim(
            f"{where} at the end of a one-cycle schedule, where the learning rate falls to 0, predictive momentum is "
            "late: its gap is more than a quarter larger than that of the best fixed one.",
            score(find_times(1.0), "mean_gap", EACH, schedule="onecycle", **OVER_LAYERS, **wanted),
            above(1.25, "times", FLAT), ("Q6", "Q10")),
    }  # fmt: skip


EXPERIMENT = Experiment(
    answers=("Q6", "Q10", "H12", "H14"),
    figures={"training": Figure(
        "The gap of predictive momentum over training, against that of the best fixed momentum",
        "Gap of the mean over the smallest of any fixed momentum in that layer at that step, known in hindsight only; "
        "geometric mean over layers. Batch size 256, one-cycle schedule; glyphs are drawn characters.",
        score(lambda tables: name_panels(find_times()(tables), "{model} on {data}"),
              "mean_gap", OVER_TIME, schedule="onecycle", batch_size=256, momentum=(0.01, 0.1, None),
              estimator=("ema", "cumulative", "predictive"), **OVER_LAYERS),
        Curves("epoch", "estimator", TIMES_THE_BEST))},
    claims={
        **make_claims("", "On characters", 0.3, SIX_IMAGES, **CHARACTERS),
        **make_claims("_digits", "On digits", 1.0, "4 of 359 test images", data="digits"),
        **make_claims("_resnet", "In a resnet on characters", 1.0, A_POINT, data="glyphs", model="resnet"),
        **{f"better_early_than_{name}": Claim(
            f"On digits early at a large batch predictive momentum is {words}.",
            score(find_early, "accuracy", ("model", "schedule"), scale=100, momentum=momentum, data="digits"),
            above(points, "points", reason), ("Q6",)) for name, momentum, points, words, reason in (
                ("default", 0.1, 5.0, "over 5 points more accurate than PyTorch's", "what nobody would give away"),
                ("last_batch", 1.0, 0.0, "more accurate than the last batch's moments", AS_ACCURATE))},
        "nearer_than_others": Claim(
            "On average over batch sizes, layers and steps, any fixed momentum and Kalman's filter have a larger gap.",
            score("gaps", "mean_gap", ("estimator", "momentum"), against="predictive", ratio=True, geometric=True,
                  average=("batch_size", "epoch", "layer"), estimator=("ema", "kalman(per=layer)"), schedule="onecycle",
                  **CHARACTERS), above(1.0, "times", AS_NEAR), ("Q10", "H14")),
        "as_accurate": Claim(
            "On characters it is less than 0.3 points below the fixed one that is best at that step and batch size.",
            score(find_losses, "accuracy", ("panel", "batch_size"), scale=-100),
            below(0.3, "points lost", SIX_IMAGES), ("Q10", "H12")),
    },
)  # fmt: skip
