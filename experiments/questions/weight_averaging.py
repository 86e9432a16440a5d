"""Do averaged weights need statistics of their own?

Izmailov et al. 2018 (SWA) measure the statistics again after averaging; torch's AveragedModel can average the buffers
instead. The learning rate is constant here: with one that falls to 0 there is little to average.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, within
from bnlab.harness.reporting.frames import paired, rows, score
from bnlab.harness.reporting.plots import ACCURACY, Curves
from experiments.margins import A_POINT, OVER_TIME, SIX_IMAGES

WORDS = {"swa": "averaged by SWA", "ema": "averaged by EMA", "none": "not averaged"}
EACH, AVERAGED = ("averaging",), ("swa", "ema")


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies over training, in panels by how weights were averaged."""
    frame = rows(tables, "evaluations", by=EACH)
    frame["panel"] = frame["averaging"].map(WORDS)
    return frame


def find_losses(tables: Tables) -> pd.DataFrame:
    """Find accuracies under the trained network's averages minus those under exact statistics of the same weights."""
    frame = rows(tables, "evaluations", 1.0, EACH, estimator=("stale", "exact"))
    return paired(frame, "accuracy")


EXPERIMENT = Experiment(
    bears_on=("Q11", "F15", "H9"),
    columns=("accuracy",),
    figures={"accuracy": Figure(
        "Averaged weights under several statistics",
        "Of weights averaged by SWA, from 75% of training on, by an EMA (0.99), or not. Lines that are hidden agree.",
        score(find_accuracies, "accuracy", OVER_TIME, scale=100), Curves("epoch", "estimator", ACCURACY))},
    claims={
        "stale_statistics_cost": Claim(
            "Under the trained network's running averages averaged weights lose over a point against exact statistics.",
            score(find_losses, "accuracy", EACH, scale=-100, averaging=AVERAGED), above(1.0, "points lost", A_POINT)),
        "stale_statistics_cost_more": Claim(
            "There averaged weights lose more than the trained ones do (asked when the other numbers were known).",
            score(find_losses, "accuracy", EACH, scale=-100, against="none", along="averaging", matching=("seed",)),
            above(0.0, "points more", "at 0 averaging adds nothing to what running averages cost anyway")),
        "averaged_buffers_are_enough": Claim(
            "Averaged weights are as accurate under averaged buffers as under exact statistics.",
            score("evaluations", "accuracy", EACH, at=1.0, against="exact", scale=100, estimator="averaged",
                  averaging=AVERAGED), within(-0.3, 0.3, "points", SIX_IMAGES)),
        "averaging_gains": Claim(
            "Under exact statistics averaged weights are more accurate than those that training ended with.",
            score("evaluations", "accuracy", EACH, at=1.0, scale=100, against="none", along="averaging",
                  matching=("seed",), estimator="exact"), above(0.0, "points gained", "at 0 averaging gains nothing")),
    },
)  # fmt: skip
