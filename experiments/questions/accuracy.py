"""How does accuracy develop under running, precise and exact statistics, and in the mini-batches?

Wu & Johnson 2021, figure 1: under an EMA it is pessimistic early and at a very large batch. Here huge batches are near
chance, 1 of 36, after a tenth of training. Progress bars show a moving average of the mini-batches' accuracy.
"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import rows, score, select, share_name
from bnlab.harness.reporting.plots import ACCURACY, Curves
from bnlab.harness.reporting.style import Axis
from experiments.margins import A_POINT, AS_ACCURATE

EARLY, MIDDLE, LATE = 0.1, 0.55, 1.0  # of the training
EACH, OVER_TIME = ("panel", "batch_size"), ("panel", "estimator", "momentum", "epoch")


def find_training(tables: Tables, at: tuple[float, ...] = (EARLY, LATE)) -> pd.DataFrame:
    """Accuracy on training images; as one more estimator, the mean over the latest 2,000 images of mini-batches."""
    log = rows(tables, "log").set_index(["run", "step"]).sort_index()
    sizes = [(of.groupby("run")["accuracy"], round(2000 / size)) for size, of in log.groupby(log["batch_size"])]
    averages = pd.concat([runs.rolling(window, min_periods=1).mean().droplevel(0) for runs, window in sizes])
    measured = rows(tables, "evaluations", at, split="train", estimator=("ema", "exact"))
    places = select(measured, estimator="exact").drop(columns="accuracy").assign(estimator="mini-batches")
    return pd.concat([measured, places.join(averages, on=["run", "step"])])


def score_loss(estimator: str, at: float | tuple[float, ...], size: int, against: str = "exact") -> Score:
    """Points of accuracy on test images that an estimator loses against another one, on the same network."""
    return score("evaluations", "accuracy", EACH, at=at, against=against, scale=-100, estimator=estimator,
                 batch_size=size, split="test")  # fmt: skip


EXPERIMENT = Experiment(
    answers=("F1", "Q2", "Q5", "Q11", "Q14", "H2", "H11"),
    figures={
        "accuracy": Figure(
            "Test accuracy of the same weights under different statistics",
            "All estimators are of the same networks at the same steps; exact statistics show what the weights can do.",
            score("evaluations", "accuracy", OVER_TIME, scale=100, split="test"),
            Curves("epoch", "estimator", ACCURACY)),
        "batches": Figure(
            "Accuracy as it is logged, and of the network at that step",
            "Mini-batches: mean accuracy of the latest 2,000 images that were trained on, each before its update; the "
            "others are of the weights of that step, on as many training images.",
            score(lambda tables: find_training(tables, ()), "accuracy", OVER_TIME, scale=100),
            Curves("epoch", "estimator", Axis("accuracy on training images (%)", (0, 102)))),
    },
    claims={
        "ema_is_pessimistic_early": Claim(
            "Early at a huge batch, PyTorch's running average costs accuracy.",
            score_loss("ema", EARLY, 1024), above(1.0, "points", A_POINT), answers=("Q2", "Q11", "Q14", "H2")),
        "cumulative_costs": Claim(
            "At a moderate batch the average of all batches costs accuracy.",
            score_loss("cumulative", (EARLY, MIDDLE, LATE), 64), above(1.0, "points", A_POINT), answers=("Q5",)),
        "last_batch_beats_ema_early": Claim(
            "Early at a huge batch, the last batch's moments alone gain accuracy against the EMA.",
            score_loss("ema", EARLY, 1024, "last_batch"), above(0.0, "points", AS_ACCURATE), answers=("H11",)),
        "lags_early": Claim(
            "Early the moving average of the mini-batches' accuracy is below the network's on training images.",
            score(find_training, "accuracy", EACH, against="exact", scale=100, estimator="mini-batches",
                  panel=share_name(EARLY)), below(-1.0, "points", A_POINT), answers=("Q2",)),
        "agrees_late": Claim(
            "At the end of training the moving average of the mini-batches' accuracy is the network's, to a point.",
            score(find_training, "accuracy", EACH, against="exact", scale=100, estimator="mini-batches",
                  panel=share_name(LATE)),
            within(-1.0, 1.0, "points", "two means of 2,000 images differ by half a point by chance"), ("Q2",)),
    },
)  # fmt: skip
