"""Is it better to freeze batch norm for the end of training, and with which statistics?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, within
from bnlab.harness.reporting.frames import name_panels, paired, rows, score
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis
from experiments.margins import A_POINT, SIX_IMAGES

SHARES = (1.0,)  # of the training
BY = ("batch_size", "freeze_with")
NAMES = {"none": "not frozen", "ema": "frozen with running averages", "exact": "frozen with exact statistics"}
FROZEN = ("ema", "exact")


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Accuracies under what the networks hold, by how they are frozen, in panels by batch size."""
    frame = rows(tables, "evaluations", by=BY, estimator="ema")
    return name_panels(frame.assign(line=frame["freeze_with"].map(NAMES)), "batch size {batch_size}")


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracy at the end minus that of the network that is not frozen, from the same seed, under what each holds."""
    frame = rows(tables, "evaluations", SHARES, BY, estimator="ema")
    return paired(frame, "accuracy", "none", along="freeze_with", matching=("seed", "batch_size"))


EXPERIMENT = Experiment(
    name="freezing",
    question="Is it better to freeze batch norm for the end of training, and with which statistics?",
    answers=("Q11", "F3"),
    source="Wu & Johnson 2021 (FrozenBN): where training goes on under the statistics of evaluation, the two do not "
    "differ. Here it does so for the last fifth; until then the networks of a seed and batch size are the same.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("accuracy", "Accuracy with batch norm frozen for the last fifth of training",
               "Test accuracy under the statistics that each network holds: its running averages, or those that it was "
               "frozen with after four fifths of training. Lines join the few steps that are measured; where one hides "
               "another they agree.",
               score(find_accuracies, "accuracy", ("panel", "line", "epoch"), scale=100),
               Curves("epoch", "line", Axis("test accuracy (%)"))),
    ),
    claims=(
        Claim("freezing_changes_little", "Batch norm that is frozen for the last fifth of training changes the final "
              "accuracy by less than a point.",
              score(find_gains, "accuracy", BY, scale=100, freeze_with=FROZEN),
              within(-1.0, 1.0, "points", A_POINT)),
        Claim("frozen_averages_hold_no_gap", "A network that was frozen with its running averages is no less accurate "
              "under them than under exact statistics: it has been trained for them.",
              score("evaluations", "accuracy", BY, SHARES, against="exact", scale=100, estimator="ema",
                    freeze_with="ema"),
              above(-0.3, "points", SIX_IMAGES)),
    ),
)  # fmt: skip
