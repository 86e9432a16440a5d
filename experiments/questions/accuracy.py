"""How does accuracy develop under running, precise and exact statistics, and in the mini-batches?

Wu & Johnson 2021, figure 1: under an EMA it is pessimistic early and at a very large batch; where that is near chance
nothing is claimed. Progress bars show a moving average of the mini-batches' accuracy.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, below, within
from bnlab.harness.reporting.frames import OtherThan, rows, score, select, share_name
from bnlab.harness.reporting.plots import ACCURACY, LOST_OF_ANY_SIZE, Curves
from experiments.margins import A_POINT, AS_ACCURATE, COST_OF_EMA, EACH, OVER_TIME

EARLY, MIDDLE, LATE = 0.1, 0.55, 1.0  # of the training


def find_training(tables: Tables) -> pd.DataFrame:
    """Find accuracies on training images; those that a progress bar would show are one more estimator."""
    measured = rows(tables, "evaluations", (EARLY, LATE), split="train", estimator=("ema", "exact"))
    exact = select(measured, estimator="exact")
    places = exact.drop(columns="accuracy")
    shown = places.assign(estimator="mini-batches")

    averages = average_batches(tables)
    averaged = shown.join(averages, on=["run", "step"])
    return pd.concat([measured, averaged])


def average_batches(tables: Tables) -> pd.Series:
    """Average accuracies over the batches with the latest 2,000 images, each before its update, by run and step."""
    log = rows(tables, "log")
    log = log.set_index(["run", "step"])
    log = log.sort_index()

    averages = []
    for _, batches in log.groupby("batch_size"):
        size = batches["batch_size"].iloc[0]
        latest = round(2000 / size)
        by_run = batches.groupby("run")["accuracy"]
        windows = by_run.rolling(latest, min_periods=1)
        averages.append(windows.mean().droplevel(0))
    return pd.concat(averages)


EXPERIMENT = Experiment(
    bears_on=("F1", "Q2", "Q5", "Q11", "Q14", "H2", "H11"),
    sweeps=("accuracy", "accuracy_batches"),
    columns=("accuracy",),
    figures={
        "accuracy": Figure(
            "Test accuracy of the same weights under different statistics",
            "Exact statistics show what the weights can do. What the last batch alone, precise BN and predictive "
            "momentum lose is in the next figure: here they would be hidden under each other.",
            score("evaluations", "accuracy", OVER_TIME, scale=100, split="test",
                  estimator=("ema", "exact", "cumulative")),
            Curves("epoch", "estimator", ACCURACY),
            Finding("In the middle of training, running averages hide part of the accuracy",
                    {"ema_is_pessimistic": (), "cumulative_costs": ()})),
        "lost": Figure(
            "Accuracy that the same weights lose under other than exact statistics",
            "All estimators are of the same networks at the same steps. The vertical axis is linear up to 0.3 points, "
            "which is hardly more than chance, and logarithmic beyond.",
            score("evaluations", "accuracy", OVER_TIME, against="exact", scale=-100, split="test",
                  estimator=OtherThan("exact")),
            Curves("epoch", "estimator", LOST_OF_ANY_SIZE)),
    },
    claims={
        "ema_is_pessimistic_early": Claim(
            "Early at a huge batch PyTorch's running average costs accuracy.",
            score("evaluations", "accuracy", EACH, at=EARLY, batch_size=1024, split="test", **COST_OF_EMA),
            above(1.0, "points", A_POINT), ("Q2", "Q11", "Q14", "H2")),
        "last_batch_beats_ema_early": Claim(
            "Early at a huge batch the last batch's moments alone gain accuracy against the EMA.",
            score("evaluations", "accuracy", EACH, at=EARLY, batch_size=1024, split="test",
                  **{**COST_OF_EMA, "against": "last_batch"}), above(0.0, "points gained", AS_ACCURATE), ("H11",)),
        "ema_is_pessimistic": Claim(
            "In the middle of training PyTorch's running average costs accuracy (asked when seen).",
            score("evaluations", "accuracy", EACH, at=MIDDLE, batch_size=(64, 1024), split="test", **COST_OF_EMA),
            above(1.0, "points", A_POINT), ("Q2", "Q11", "Q14", "H2")),
        "cumulative_costs": Claim(
            "At a moderate batch the average of all batches costs accuracy.",
            score("evaluations", "accuracy", EACH, at=(EARLY, MIDDLE, LATE), against="exact", scale=-100,
                  estimator="cumulative", batch_size=64, split="test"), above(1.0, "points", A_POINT), ("Q5",)),
        "lags_early": Claim(
            "Early the moving average of the mini-batches' accuracy is below the network's on training images.",
            score(find_training, "accuracy", EACH, against="exact", scale=100, estimator="mini-batches",
                  panel=share_name(EARLY)), below(-1.0, "points", A_POINT), ("Q2",)),
        "agrees_late": Claim(
            "At the end of training the moving average of the mini-batches' accuracy is the network's, to a point.",
            score(find_training, "accuracy", EACH, against="exact", scale=100, estimator="mini-batches",
                  panel=share_name(LATE)), within(-1.0, 1.0, "points", "chance makes half a point"), ("Q2",)),
    },
)  # fmt: skip
