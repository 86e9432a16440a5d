"""Do averaged weights need statistics of their own?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, within
from bnlab.harness.reporting.frames import name_panels, paired, put_in_order, rows, score
from bnlab.harness.reporting.plots import ACCURACY, EstimatorCurves
from experiments.margins import A_POINT, SIX_IMAGES

SHARES = (1.0,)  # of the training
NAMES = {"none": "weights as they are", "swa": "SWA, from 75% on", "ema": "EMA of the weights (0.99)"}
AVERAGED = ("swa", "ema")


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Accuracies over training, in panels by what is averaged."""
    frame = rows(tables, "evaluations", by=("averaging",))
    twice = frame["averaging"].eq("none") & frame["estimator"].eq("averaged")  # there `stale` is the same
    ordered = put_in_order(frame[~twice], "averaging", NAMES)
    return name_panels(ordered.assign(averaged=ordered["averaging"].map(NAMES)), "{averaged}")


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracy under exact statistics minus that of the weights as they are, trained from the same seed."""
    frame = rows(tables, "evaluations", SHARES, ("averaging",), estimator="exact")
    return paired(frame, "accuracy", "none", along="averaging", matching=("seed",))


def find_stale_losses(tables: Tables) -> pd.DataFrame:
    """Accuracy under the trained network's averages against exact ones, minus the same of the weights as they are."""
    frame = rows(tables, "evaluations", SHARES, ("averaging",), estimator=("stale", "exact"))
    lost = paired(frame, "accuracy")
    return paired(lost, "accuracy", "none", along="averaging", matching=("seed",))


EXPERIMENT = Experiment(
    name="weight_averaging",
    question="Do averaged weights need statistics of their own?",
    answers=("Q11", "F15", "H9"),
    source="Izmailov et al. 2018 (SWA) measure the statistics again after averaging; torch's AveragedModel can average "
    "the buffers instead. The learning rate is constant here: with one that falls to 0 there is little to average.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("accuracy", "Averaged weights under several statistics",
               "Test accuracy over training. The running averages of the network that is trained are of its weights, "
               "not of the averaged ones; its buffers can be averaged as the weights are; precise and exact statistics "
               "are those of the weights that are evaluated. SWA has the weights as they are until 75% of training. "
               "Where one line hides another they agree.",
               score(find_accuracies, "accuracy", ("panel", "estimator", "momentum", "epoch"), scale=100),
               EstimatorCurves(ACCURACY)),
    ),
    claims=(
        Claim("stale_statistics_cost", "Averaged weights under the running averages of the network that was trained "
              "lose more than a point against exact statistics of their own.",
              score("evaluations", "accuracy", ("averaging",), SHARES, against="exact", scale=-100,
                    estimator="stale", averaging=AVERAGED),
              above(1.0, "points lost", A_POINT)),
        Claim("stale_statistics_cost_more", "Under the running averages of the network that was trained, averaged "
              "weights lose more than its own weights do (asked when the other numbers were known).",
              score(find_stale_losses, "accuracy", ("averaging",), scale=-100, averaging=AVERAGED),
              above(0.0, "points more", "at 0 averaging adds nothing to what running averages cost anyway")),
        Claim("averaged_buffers_are_enough", "Under buffers that are averaged as the weights are, averaged weights are "
              "as accurate as under exact statistics.",
              score("evaluations", "accuracy", ("averaging",), SHARES, against="exact", scale=100,
                    estimator="averaged", averaging=AVERAGED),
              within(-0.3, 0.3, "points", SIX_IMAGES)),
        Claim("averaging_gains", "Under exact statistics averaged weights are more accurate than those that training "
              "ended with.",
              score(find_gains, "accuracy", ("averaging",), scale=100, averaging=AVERAGED),
              above(0.0, "points gained", "at 0 averaging gains nothing")),
    ),
)  # fmt: skip
