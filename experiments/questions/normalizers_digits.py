"""How accurate are networks with each norm in batches of 2 to 256 images of real digits?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis
from experiments.by_norm import (
    BATCH,
    EXACT,
    GAIN_CONTROL,
    GROUP,
    INSTANCE,
    LAYER,
    NONE,
    RENORM,
    compare,
    find_accuracies,
)
from experiments.margins import A_POINT, AS_ACCURATE

SHARES = (1.0,)  # of the training
BY = ("batch_size",)
TINY, MODERATE, OTHERS = 2, 64, (16, 64, 256)  # images in a batch
AS_GOOD = ("points gained", AS_ACCURATE)
CURVES = Curves("batch_size", "line", Axis("test accuracy (%)"))


def find_final(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end of training."""
    return find_accuracies(tables, SHARES, BY)


def score_curves(*normalizers: str) -> Score:
    """Accuracies against the batch size, a line for each of these."""
    return score(lambda tables: find_final(tables).rename(columns={"normalizer": "line"}), "accuracy",
                 ("panel", "line", "batch_size"), scale=100, line=normalizers)  # fmt: skip


def score_gain(normalizer: str, against: str, **wanted: Any) -> Score:
    """Points that networks with one norm gain against others of the same seed and batch size."""
    return score(lambda tables: compare(tables, against, SHARES, BY), "accuracy", BY, scale=100, normalizer=normalizer,
                 **wanted)  # fmt: skip


def score_tiny(normalizer: str) -> Score:
    """Points that training in batches of 2 gains against batches of 64."""
    return score(find_final, "accuracy", BY, against=MODERATE, along="batch_size", matching=("seed",), scale=100,
                 normalizer=normalizer, batch_size=TINY)  # fmt: skip


EXPERIMENT = Experiment(
    name="normalizers_digits",
    question="How accurate are networks with each norm in batches of 2 to 256 images of real digits?",
    answers=("F5", "F6", "F13", "Q18", "H5"),
    source="Wu & He 2018 (group norm) and Yan et al. 2020 (small batches) on ImageNet; Ioffe 2017 (renormalization); "
    "Ruff 2017 (gain control). Running averages have PyTorch's momentum of 0.1, with which renormalization trains too. "
    "All networks with one batch size have the same learning rate, which was chosen for batch norm.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("accuracy", "Accuracy against the batch size by norm",
               "Test accuracy of norms that have no statistics of batches, beside batch norm under exact ones.",
               score_curves(BATCH + EXACT, GROUP, LAYER, INSTANCE, GAIN_CONTROL, NONE), CURVES),
        Figure("statistics", "Accuracy against the batch size by statistics",
               "Test accuracy of batch norm and renormalization under the running averages of training and under exact "
               "statistics of the same network.",
               score_curves(BATCH, BATCH + EXACT, RENORM, RENORM + EXACT), CURVES),
    ),
    claims=(
        Claim("batches_of_two_hurt_batch_norm", "Batch norm under exact statistics is more than a point worse after "
              "batches of 2 than after batches of 64: new statistics do not rescue the weights.",
              score_tiny(BATCH + EXACT), below(-1.0, "points gained", A_POINT), answers=("F6", "H5")),
        Claim("group_norm_is_flat", "Group norm is less than a point apart after batches of 2 and of 64.",
              score_tiny(GROUP), within(-1.0, 1.0, "points gained", A_POINT), answers=("F5",)),
        Claim("group_norm_wins_when_tiny", "In batches of 2 group norm is more accurate than batch norm under exact "
              "statistics.",
              score_gain(GROUP, BATCH + EXACT, batch_size=TINY), above(0.0, *AS_GOOD), answers=("F5", "F6", "H5")),
        Claim("group_norm_is_level_otherwise", "In batches of 16 and more group norm is less than a point apart from "
              "batch norm under exact statistics.",
              score_gain(GROUP, BATCH + EXACT, batch_size=OTHERS), within(-1.0, 1.0, "points gained", A_POINT),
              answers=("F5",)),
        Claim("renorm_wins_when_tiny", "In batches of 2 batch renormalization is more accurate than batch norm, both "
              "under running averages.",
              score_gain(RENORM, BATCH, batch_size=TINY), above(0.0, *AS_GOOD), answers=("F6", "F13")),
        Claim("gain_control_keeps_up", "Gain control is less than a point worse than batch norm under exact statistics "
              "at each batch size.",
              score_gain(GAIN_CONTROL, BATCH + EXACT), above(-1.0, "points", A_POINT), answers=("Q18",)),
        Claim("no_norm_keeps_up", "Without a norm, too, networks are less than a point worse.",
              score_gain(NONE, BATCH + EXACT), above(-1.0, "points", A_POINT), answers=("F5",)),
    ),
)  # fmt: skip
