"""Does early stopping pick another checkpoint under running averages than under exact statistics, and at what cost?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, within
from bnlab.harness.reporting.frames import check_coverage, lowest, rows, score, select
from bnlab.harness.reporting.plots import EstimatorCurves, Forest
from bnlab.harness.reporting.style import Axis

BY, EACH = ("panel", "estimator", "momentum", "epoch"), ("batch_size",)
PICKED = {"ema": "under the EMA", "predictive": "under predictive momentum", "last": "the last one"}
MOST = (
    "of the networks",
    "more than half are most; of two batch sizes, six networks each that agree are the fewest that decide it",
)
MARGIN = (
    "points",
    "10 of 2,000 test images: the standard error where accuracy is near 95%; comparisons are paired",
)


def find_picks(tables: Tables) -> pd.DataFrame:
    """Of each network and estimator the first of the checkpoints with the highest validation accuracy; and the last.

    Besides the columns of `rows` it has `cost`, how much lower its test accuracy is than that of the checkpoint which
    exact statistics pick, both under exact statistics; and `same`, whether these are one checkpoint.
    """
    val, test = (rows(tables, "evaluations", split=split) for split in ("val", "test"))
    check_coverage(val, ["run"], ["estimator", "momentum"], ["step"])
    exact = select(val, estimator="exact")
    last = exact[exact["step"] == exact.groupby("run")["step"].transform("max")].assign(estimator="last")
    errors = pd.concat([val, last]).assign(error=lambda f: 1 - f["accuracy"])
    tested = select(test, estimator="exact").set_index(["run", "step"])["accuracy"].rename("tested")
    picked = lowest(errors, "error", ["run", "estimator", "momentum"]).join(tested, on=["run", "step"])
    best = select(picked, estimator="exact")[["run", "step", "tested"]]
    both = picked.merge(best, on="run", suffixes=("", "_exact"))
    return both.assign(cost=both["tested_exact"] - both["tested"], same=both["step"] == both["step_exact"])


def find_costs(tables: Tables) -> pd.DataFrame:
    """What estimators pick; the column `picked` says it in words."""
    picks = select(find_picks(tables), estimator=tuple(PICKED))
    return picks.assign(picked=picks["estimator"].map(PICKED))


def score_picks(value: str, estimator: str, scale: float = 1) -> Score:
    """A column of `find_picks`, of what one estimator picks."""
    return score(find_picks, value, EACH, scale=scale, estimator=estimator)


EXPERIMENT = Experiment(
    name="model_selection",
    question="Does early stopping pick another checkpoint under running averages than under exact statistics?",
    answers=("Q14", "Q17"),
    source="Validation while a network is trained uses its running averages; the learning rate is constant here, so "
    "that the last checkpoint need not be the best.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("validation", "What early stopping sees",
               "Accuracy on the validation split over training, the same weights under different statistics. A "
               "checkpoint is one of the few measured steps; of each network the highest one is picked. {schedule}",
               score("evaluations", "accuracy", BY, scale=100, split="val"),
               EstimatorCurves(Axis("validation accuracy (%)", (0, 102)))),
        Figure("cost", "Test accuracy lost by picking a checkpoint under other statistics",
               "Test accuracy of the checkpoint that is picked by validation accuracy under exact statistics minus "
               "that of another one, both evaluated under exact statistics: picked under running averages, or the last "
               "one without regard to validation.",
               score(find_costs, "cost", ("panel", "picked"), scale=100),
               Forest("picked", Axis("test accuracy lost (points)"), mark=(0, "as exact statistics pick"))),
    ),
    claims=(
        Claim("last_is_not_best", "At a constant learning rate the last checkpoint has a lower test accuracy than the "
              "one that exact statistics pick.",
              score_picks("cost", "last", 100), above(0.0, "points lost", "at 0 there is nothing to select"),
              answers=("Q17",)),
        Claim("ema_shows_less", "Over training the EMA shows a lower validation accuracy than exact statistics.",
              score("evaluations", "accuracy", EACH, against="exact", average="step", scale=-100, split="val",
                    estimator="ema"),
              above(0.5, "points", "the margin of what is picked by it"),
              answers=("Q14", "Q17")),
        Claim("ema_picks_as_well", "The checkpoint that is picked under the EMA has the test accuracy of the one that "
              "exact statistics pick, to half a point.",
              score_picks("cost", "ema", 100), within(-0.5, 0.5, *MARGIN),
              answers=("Q14", "Q17")),
        Claim("predictive_picks_as_well", "The checkpoint that is picked under predictive momentum has the test "
              "accuracy of the one that exact statistics pick, to half a point.",
              score_picks("cost", "predictive", 100), within(-0.5, 0.5, *MARGIN),
              answers=("Q17",)),
        Claim("ema_picks_the_same", "In most networks the EMA picks the checkpoint that exact statistics pick.",
              score_picks("same", "ema"), above(0.5, *MOST),
              answers=("Q17",)),
        Claim("predictive_picks_the_same", "In most networks predictive momentum picks the checkpoint that exact "
              "statistics pick.",
              score_picks("same", "predictive"), above(0.5, *MOST),
              answers=("Q17",)),
    ),
)  # fmt: skip
