"""Does what the running average costs depend on how the network is trained?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, within
from bnlab.harness.reporting.frames import put_in_order, rows, score, share_name
from bnlab.harness.reporting.plots import Forest
from bnlab.harness.reporting.style import Axis
from experiments.margins import A_POINT

SHARES = _, MIDDLE, LATE = (0.1, 0.55, 1.0)  # of the training
USUAL = {
    "optimizer.name": "sgd",
    "optimizer.lr": 0.1,
    "optimizer.schedule": "onecycle",
    "optimizer.weight_decay": 5e-4,
    "data.shift": 0,
}
WORDS = {
    "optimizer.name": "{}",
    "optimizer.lr": "learning rate {:g}",
    "optimizer.schedule": "{} schedule",
    "optimizer.weight_decay": "weight decay {:g}",
    "data.shift": "training images shifted by up to {:g} pixels",
}
EACH = ("panel", "setting")
UNCHANGED, SLOW, FAST, CONSTANT = "nothing changed", "learning rate 0.025", "learning rate 0.4", "constant schedule"
EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}


def name_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `setting`: what differs from the usual training, in words. The usual one comes first."""
    words = [
        ", ".join(WORDS[column].format(row[column]) for column, usual in USUAL.items() if row[column] != usual)
        for row in frame[[*USUAL]].to_dict("records")
    ]
    named = frame.assign(setting=[word or UNCHANGED for word in words])
    return put_in_order(named, "setting", [UNCHANGED])


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Accuracies with their setting."""
    return name_settings(rows(tables, "evaluations", SHARES, [*USUAL]))


def find_gaps(tables: Tables) -> pd.DataFrame:
    """Gaps under PyTorch's momentum with their setting."""
    return name_settings(rows(tables, "gaps", SHARES, [*USUAL], **EMA))


def score_cost(share: float | None = None) -> Score:
    """Points that PyTorch's running average loses against exact statistics of the same network."""
    where: dict[str, Any] = {} if share is None else {"panel": share_name(share)}
    return score(find_accuracies, "accuracy", EACH, against="exact", scale=-100, **EMA, **where)


def score_times(setting: str, against: str, share: float) -> Score:
    """How many times the gap of the mean under one setting that under the other is, over layers."""
    return score(find_gaps, "mean_gap", ("setting",), against=against, along="setting", matching=("seed",), ratio=True,
                 average="layer", geometric=True, setting=setting, panel=share_name(share))  # fmt: skip


EXPERIMENT = Experiment(
    name="settings",
    question="Does what the running average costs depend on optimizer, learning rate, schedule, weight decay or "
    "augmentation?",
    answers=("Q11", "H2"),
    source="One setting of the training is changed at a time, at a batch of 256, where an epoch has 36 steps; AdamW "
    "has a learning rate and weight decay of its own.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure("cost", "What PyTorch's running average costs, by what is changed in the training",
               "Points of test accuracy lost against exact statistics of the same network, paired; right of 0 is a "
               "loss.",
               score_cost(), Forest("setting", Axis("accuracy lost (points)"), mark=(0.0, "no loss"))),
    ),
    claims=(
        Claim("harmless_late", "At the end of training PyTorch's running average costs less than a point, whichever "
              "setting of the training is changed.",
              score_cost(LATE),
              within(-1.0, 1.0, "points", A_POINT)),
        Claim("constant_rate_costs_late", "With a constant learning rate the gap of PyTorch's running average at the "
              "end is more than twice as large as with one that falls to 0.",
              score_times(CONSTANT, UNCHANGED, LATE),
              above(2.0, "times", "no other setting of the training should double it")),
        Claim("high_rate_is_farther", "In the middle of training the gap of PyTorch's running average is larger at a "
              "learning rate of 0.4 than at a sixteenth of it, 0.025.",
              score_times(FAST, SLOW, MIDDLE), above(1.0, "times", "at 1 both are as far")),
    ),
)  # fmt: skip
