"""How accurate are networks with other norms, at a small and at a moderate batch?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import name_panels, score
from bnlab.harness.reporting.plots import Curves, Forest
from bnlab.harness.reporting.style import Axis
from experiments.by_norm import BATCH, EXACT, GAIN_CONTROL, GROUP, NONE, RENORM, compare, find_accuracies
from experiments.margins import A_POINT, AS_ACCURATE

SHARES = (1.0,)  # of the training
BY = ("batch_size",)
SMALL, MODERATE = 4, 64  # images in a batch
FOLLOWED = (BATCH, BATCH + EXACT, RENORM, GROUP, GAIN_CONTROL, NONE)
AXIS = Axis("test accuracy (%)")
AS_GOOD = ("points gained", AS_ACCURATE)


def find_final(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end of training, in panels by batch size."""
    return name_panels(find_accuracies(tables, SHARES, BY), "batch size {batch_size}")


def find_courses(tables: Tables) -> pd.DataFrame:
    """Accuracies over training, in panels by batch size."""
    frame = find_accuracies(tables, (), BY)
    return name_panels(frame.assign(line=frame["normalizer"]), "batch size {batch_size}")


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end minus that of batch norm from the same seed, under its averages and under exact ones."""
    beside = [compare(tables, batch, SHARES, BY).assign(line=f"against {batch}")
              for batch in (BATCH, BATCH + EXACT)]  # fmt: skip
    return pd.concat(beside, ignore_index=True)


def score_gain(normalizer: str, **wanted: Any) -> Score:
    """Points that networks with this norm gain at the end of training."""
    return score(find_gains, "accuracy", ("line", "batch_size"), scale=100, normalizer=normalizer, **wanted)


EXPERIMENT = Experiment(
    name="normalizers",
    question="How accurate are networks with other norms, at a small and at a moderate batch?",
    answers=("F5", "F6", "F13", "Q18", "H5"),
    source="Wu & He 2018 (group norm) and Yan et al. 2020 (small batches) on ImageNet; Ioffe 2017 (renormalization); "
    "Ruff 2017 (gain control). Running averages have a momentum of 0.01 here, with which renormalization trains too. "
    "All networks with one batch size have the same learning rate, which was chosen for batch norm.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("accuracy", "Accuracy by norm and batch size",
               "Test accuracy at the end of training. Batch norm and renormalization under the running averages of "
               "training and under exact statistics of the same network; the other norms have none.",
               score(find_final, "accuracy", ("panel", "normalizer"), scale=100), Forest("normalizer", AXIS)),
        Figure("training", "Accuracy over training by norm",
               "Test accuracy, under running averages where nothing else is said.",
               score(find_courses, "accuracy", ("panel", "line", "epoch"), scale=100, line=FOLLOWED),
               Curves("epoch", "line", AXIS)),
    ),
    claims=(
        Claim("group_norm_wins_when_small", "In batches of 4 group norm is more accurate than batch norm, also under "
              "exact statistics: new statistics do not rescue the weights.",
              score_gain(GROUP, batch_size=SMALL), above(0.0, *AS_GOOD), answers=("F5", "F6", "H5")),
        Claim("batch_norm_wins_when_moderate", "In batches of 64 batch norm is more accurate than group norm, under "
              "either statistics.",
              score_gain(GROUP, batch_size=MODERATE), below(0.0, *AS_GOOD), answers=("F5",)),
        Claim("renorm_wins_when_small", "In batches of 4 batch renormalization is more accurate than batch norm under "
              "running averages.",
              score_gain(RENORM, batch_size=SMALL, line=f"against {BATCH}"), above(0.0, *AS_GOOD),
              answers=("F6", "F13")),
        Claim("gain_control_keeps_up", "Gain control is less than a point worse than batch norm, under either "
              "statistics.",
              score_gain(GAIN_CONTROL), above(-1.0, "points", A_POINT), answers=("Q18",)),
        Claim("no_norm_costs", "Without a norm networks are more than a point worse than with batch norm, under either "
              "statistics.",
              score_gain(NONE), below(-1.0, "points gained", A_POINT), answers=("F5",)),
    ),
)  # fmt: skip
