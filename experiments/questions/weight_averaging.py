"""Do averaged weights need statistics of their own?

Izmailov et al. 2018 (SWA) measure the statistics again after averaging; torch's AveragedModel can average the buffers
instead. Here the learning rate is constant, because with one that falls to 0 there is little to average.
"""

import pandas as pd

from bnlab.harness.reporting.frames import paired, rows, score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above
from experiments.margins import A_POINT, HARMLESS

WORDS = {"none": "not averaged", "swa": "averaged by SWA", "ema": "averaged by EMA"}
STATISTICS = {
    "stale": "running averages of the trained network",
    "averaged": "averaged buffers",
    "exact": "exact statistics",
}
EACH = ("averaging",)
AVERAGED = ("swa", "ema")


def select_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end of training, without averaged buffers of weights that are not averaged."""
    frame = rows(tables, "evaluations", 1.0, EACH)
    is_itself = (frame["averaging"] == "none") & (frame["estimator"] == "averaged")
    return frame[~is_itself]


def compute_losses(tables: Tables) -> pd.DataFrame:
    """Find accuracies under the trained network's averages minus those under exact statistics of the same weights."""
    frame = rows(tables, "evaluations", 1.0, EACH, estimator=("stale", "exact"))
    return paired(frame, "accuracy")


QUESTION = Question(
    bears_on=("Q20", "H9", "F15"),
    columns=("accuracy",),
    remarks=(
        "**Added seeds.** In `results/reference` seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were "
        "known. All fifteen decide 4 of 8 conditions that the first five left undecided; the added seeds alone decide "
        "3 of these in the same way, and leave 1 undecided. No verdict of the first five became undecided or was "
        "reversed.",
    ),
    figures={
        "accuracy": Figure(
            "Averaged weights under several statistics, at the end of training",
            "Compare the points beside a name: the same weights under different statistics. SWA averages from 75% of "
            "training on; the EMA of the weights has decay 0.99. Precise statistics, taken in one pass, coincide with "
            "exact ones and are not drawn.",
            score(select_accuracies, "accuracy", ("panel", "averaging", "estimator"), scale=100,
                  estimator=[*STATISTICS]),
            Forest("averaging", Axis("test accuracy (%)"), series="estimator"),
            Headline("Averaged weights are more accurate, but under the trained network's running averages an EMA "
                     "loses over a point of that",
                    {"averaging_gains": (), "stale_statistics_cost": ("weights averaged by ema",)}),
            names={"estimator": STATISTICS, "averaging": WORDS}),
    },
    claims={
        "stale_statistics_cost": Claim(
            "Under the trained network's running averages averaged weights lose over a point against exact statistics.",
            score(compute_losses, "accuracy", EACH, scale=-100, averaging=AVERAGED), above(1.0, "points lost",
                  A_POINT), lines="each"),
        "stale_statistics_cost_more": Claim(
            "There averaged weights lose more than the trained ones do.",
            score(compute_losses, "accuracy", EACH, scale=-100, against="none", along="averaging", matching=("seed",)),
            above(0.0, "points more", "0 means that averaging adds nothing to what running averages cost anyway"),
            lines="each", post_hoc="asked when the other numbers were known"),
        "averaged_buffers_are_enough": Claim(
            "Averaged weights are as accurate under averaged buffers as under exact statistics.",
            score("evaluations", "accuracy", EACH, at=1.0, against="exact", scale=100, estimator="averaged",
                  averaging=AVERAGED), HARMLESS, lines="each"),
        "averaging_gains": Claim(
            "Under exact statistics averaged weights are more accurate than those that training ended with.",
            score("evaluations", "accuracy", EACH, at=1.0, scale=100, against="none", along="averaging",
                  matching=("seed",), estimator="exact"), above(0.0, "points gained", "0 means that averaging gains "
                                                                                      "nothing"),
                  lines="each"),
    },
)  # fmt: skip
