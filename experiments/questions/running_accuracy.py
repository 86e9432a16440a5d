"""What does the moving average of the mini-batches' accuracy show, and what the accuracy under running averages?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import rows, score, select
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis
from experiments.margins import A_POINT

SHARES = EARLY, LATE = (0.1, 1.0)  # of the training, at which claims are decided
IMAGES = 2000  # of the latest mini-batches, over which their accuracy is averaged
EACH = ("panel", "batch_size")
BATCHES, TRAINING, VALIDATION = "mini-batches", "training images, exact", "validation images, exact"
SPLITS, STATISTICS = {"train": "training images, ", "val": "validation images, "}, {"ema": "EMA", "exact": "exact"}


def average_batches(log: pd.DataFrame) -> pd.Series:
    """Of each update the mean accuracy of the latest batches, as many as have 2,000 images."""
    averages = log["accuracy"].copy()
    for _, updates in log.sort_values("step").groupby("run", sort=False):
        window = max(1, round(IMAGES / updates["batch_size"].iloc[0]))
        averages[updates.index] = updates["accuracy"].rolling(window, min_periods=1).mean()
    return averages


def find_curves(tables: Tables, shares: tuple[float, ...] = ()) -> pd.DataFrame:
    """Accuracies at the measured steps; the column `of` says of what and under which statistics."""
    frame = rows(tables, "evaluations", shares, split=("train", "val"), estimator=("ema", "exact"))
    measured = frame.assign(of=frame["split"].map(SPLITS) + frame["estimator"].map(STATISTICS))
    log = rows(tables, "log")
    averages = log.assign(accuracy=average_batches(log)).set_index(["run", "step"])["accuracy"]
    places = select(measured, of=TRAINING).drop(columns="accuracy")
    batches = places.join(averages, on=["run", "step"]).assign(of=BATCHES)
    return pd.concat([measured, batches], ignore_index=True).drop(columns="split")


def score_excess(share: float, over: str) -> Score:
    """Points by which the mini-batches' moving average is above another accuracy of the same network."""
    return score(lambda tables: find_curves(tables, (share,)), "accuracy", EACH, against=over, along="of", scale=100,
                 of=BATCHES)  # fmt: skip


EXPERIMENT = Experiment(
    name="running_accuracy",
    question="What does a moving average of the mini-batches' accuracy show, against the accuracy of the network?",
    answers=("Q2",),
    source="Progress bars show the former while a network is trained; it is of batch statistics and of past weights.",
    columns={"evaluations": ("accuracy",), "log": ("accuracy",)},
    figures=(
        Figure("accuracy", "Accuracy as it is logged, and of the network at that step",
               "Mini-batches: mean accuracy of the latest 2,000 images that were trained on, each before its update. "
               "The others are evaluated with the weights of that step, on as many training images as there are test "
               "images and on the validation split, under exact statistics of the training split and under the EMA "
               "with momentum {momentum}.",
               score(find_curves, "accuracy", ("panel", "of", "epoch"), scale=100),
               Curves("epoch", "of", Axis("accuracy (%)", (0, 102)))),
    ),
    claims=(
        Claim("lags_early", "Early the moving average of the mini-batches' accuracy is below the accuracy that the "
              "network has on training images.",
              score_excess(EARLY, TRAINING),
              below(-1.0, "points", A_POINT)),
        Claim("below_validation_early", "Early the moving average of the mini-batches' accuracy is even below the "
              "accuracy on validation images.",
              score_excess(EARLY, VALIDATION), below(0.0, "points", "at 0 both are the same")),
        Claim("agrees_late", "At the end of training the moving average of the mini-batches' accuracy is the accuracy "
              "on training images, to a point.",
              score_excess(LATE, TRAINING),
              within(-1.0, 1.0, "points", "two means of 2,000 images differ by half a point by chance where accuracy "
                     "is near 97%")),
        Claim("flatters_late", "At the end of training the moving average of the mini-batches' accuracy is above the "
              "accuracy on validation images.",
              score_excess(LATE, VALIDATION), above(0.0, "points", "at 0 both are the same")),
    ),
)  # fmt: skip
