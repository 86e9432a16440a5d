"""Is a momentum that forecasts the next batch as good as the best fixed one, which is known in hindsight only?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import OtherThan, best_on_average, interval, over_best, paired, rows, score, select
from bnlab.harness.reporting.plots import TIMES_THE_BEST, EstimatorCurves
from experiments.margins import FLAT, SIX_IMAGES

SHARES = (0.1, 0.55, 1.0)  # of the training, at which accuracy is decided
SHOWN = (0.01, 0.1, 0.5, None)  # of the fixed momenta, in figures
SETTING = ("estimator", "momentum")
READ = (
    "Gap of the mean over the smallest that any fixed momentum has in the same layer of the same network at the same "
    "step, geometric mean; at 1 an estimator is as near as the best momentum, which is known in hindsight only. "
)


def find_times(tables: Tables) -> pd.DataFrame:
    """Of every estimator: how many times the gap of the best fixed momentum of its layer and step."""
    return over_best(rows(tables, "gaps", estimator=OtherThan("exact")), "mean_gap")


def score_times(*by: str, **wanted: Any) -> Score:
    """How many times the best fixed momentum's gap: geometric mean of all rows of a seed that agree in `by`.

    A panel for each batch size, or one where these are told apart by it.
    """

    def find(tables: Tables) -> pd.DataFrame:
        times = find_times(tables)
        return times.assign(panel="all steps") if "batch_size" in by else times

    others = [key for key in ("batch_size", "epoch", "layer") if key not in by]
    return score(find, "mean_gap", ("panel", *by), average=others, geometric=True, **wanted)


def find_others(tables: Tables) -> pd.DataFrame:
    """How many times the forecast's gap is that of Kalman and of each fixed momentum."""
    gaps = rows(tables, "gaps", estimator=("ema", "kalman(per=layer)", "predictive"))
    return paired(gaps, "mean_gap", against="predictive", ratio=True)


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Points of accuracy that the forecast loses against the fixed momentum with the highest mean over seeds."""
    both = rows(tables, "evaluations", SHARES, estimator=("ema", "predictive"))
    best = best_on_average(select(both, estimator="ema"), "accuracy", ("panel", "batch_size"))
    both = pd.concat([best, select(both, estimator="predictive")])
    lost = paired(both, "accuracy", against="ema")
    return interval(lost, "accuracy", ("panel", "batch_size"), scale=-100)


EXPERIMENT = Experiment(
    name="predictive",
    question="Is a momentum that forecasts the next batch as good as the best fixed one in hindsight?",
    answers=("Q10", "H12", "H14"),
    source="The noise of the batch that is forecast is the same for all momenta: the best forecast is the nearest.",
    columns={"gaps": ("layer", "depth", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure("batch_size", "Every estimator against the best fixed momentum, by batch size",
               READ + "Over layers and all measured steps.",
               score_times("batch_size", *SETTING, momentum=SHOWN), EstimatorCurves(TIMES_THE_BEST, x="batch_size")),
        Figure("training", "Every estimator against the best fixed momentum, over training", READ + "Over layers.",
               score_times(*SETTING, "epoch", momentum=SHOWN), EstimatorCurves(TIMES_THE_BEST)),
        Figure("layers", "Every estimator against the best fixed momentum, by layer",
               READ + "Over all measured steps; layers are counted from the input.",
               score_times(*SETTING, "depth", momentum=SHOWN), EstimatorCurves(TIMES_THE_BEST, x="depth")),
    ),
    claims=(
        Claim("near_the_best", "On average over layers and steps, the gap of predictive momentum is about that of the "
              "fixed one that is best in this layer at this step.",
              score_times("batch_size", estimator="predictive"),
              below(1.25, "times", FLAT),
              answers=("Q10", "H12", "H14")),
        Claim("nearer_than_others", "On average over batch sizes, layers and steps, any fixed momentum and Kalman's "
              "filter have a larger gap than predictive momentum.",
              score(find_others, "mean_gap", SETTING, average=("batch_size", "epoch", "layer"), geometric=True),
              above(1.0, "times", "at 1 both are as near"),
              answers=("Q10", "H14")),
        Claim("as_accurate", "Predictive momentum loses less than 0.3 points of accuracy against the fixed one that is "
              "best at that step and batch size.",
              score_accuracy,
              below(0.3, "points lost", SIX_IMAGES),
              answers=("Q10", "H12")),
    ),
)  # fmt: skip
