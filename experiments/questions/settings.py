"""Does what the running average costs depend on how the network is trained, and does it help to freeze batch norm?

One setting is changed at a time, at a batch of 256; AdamW has a learning rate and weight decay of its own. Wu & Johnson
2021 (FrozenBN): where training goes on under the statistics of evaluation, the two do not differ.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Score, Tables, above, within
from bnlab.harness.reporting.frames import RATIO_OVER_LAYERS, put_in_order, rows, score, share_name
from bnlab.harness.reporting.plots import LOST_OF_ANY_SIZE, Forest
from experiments.margins import A_POINT, AS_NEAR

SHARES = _, MIDDLE, LATE = (0.1, 0.55, 1.0)  # of the training
USUAL: dict[str, Any] = {
    "optimizer": "sgd",
    "optimizer.lr": 0.1,
    "optimizer.schedule": "onecycle",
    "optimizer.weight_decay": 5e-4,
    "data.shift": 0,
}
SAID_USUAL = "one-cycle SGD, learning rate 0.1, weight decay 0.0005"
WORDS = ("{}", "learning rate {:g}", "{} schedule", "weight decay {:g}", "training images shifted by up to {:g} pixels")
LITTLE = within(-1.0, 1.0, "points", A_POINT)


def find_changes(tables: Tables, table: str) -> pd.DataFrame:
    """Find rows of networks that are not frozen; `setting` is what differs from the usual training, in words."""
    settings = list(USUAL)
    frame = rows(tables, table, SHARES, settings, batch_size=256, freeze_with="none")
    networks = frame[settings].to_dict("records")
    frame["setting"] = [name_changes(network) for network in networks]
    return put_in_order(frame, "setting", ["usual"])


def name_changes(settings: dict[Any, Any]) -> str:
    """Say in what a network's settings differ from the usual training."""
    changes = []
    for (setting, usual), words in zip(USUAL.items(), WORDS, strict=True):
        value = settings[setting]
        if value != usual:
            changes.append(words.format(value))
    return ", ".join(changes) or "usual"


def score_cost(*shares: float) -> Score:
    """Score the points that PyTorch's running average loses against exact statistics of the same network."""
    panels = [share_name(share) for share in shares]
    return score(
        lambda tables: find_changes(tables, "evaluations"),
        "accuracy",
        ("panel", "setting"),
        against="exact",
        scale=-100,
        panel=panels,
    )


def score_times(setting: str, against: str, share: float) -> Score:
    """Score the running average's gap under one setting over that under the other, behind the first layer."""
    return score(
        lambda tables: find_changes(tables, "gaps"),
        "mean_gap",
        ("setting",),
        against=against,
        along="setting",
        matching=("seed",),
        ratio=True,
        setting=setting,
        estimator="ema",
        panel=share_name(share),
        **RATIO_OVER_LAYERS,
    )


def find_costs(tables: Tables) -> pd.DataFrame:
    """Find the same costs at all shares of the training, in one panel; `line` is the share."""
    compute = score_cost(*SHARES)
    costs = compute(tables).rename(columns={"panel": "line"})
    names = costs["setting"].replace("usual", SAID_USUAL).str.replace("adamw", "AdamW")
    shorter = names.str.replace("training images", "images")
    named = costs.assign(setting=shorter, panel="")
    lines = [share_name(share) for share in SHARES]
    return put_in_order(named, "line", lines)


EXPERIMENT = Experiment(
    bears_on=("Q11", "H2", "F3"),
    sweeps=("settings", "settings_freezing"),
    columns=("accuracy", "mean_gap"),
    figures={"cost": Figure(
        "What PyTorch's running average costs, by what is changed in the training",
        "Compare each line with the first, from which it differs in what it names. Points of test accuracy lost "
        "against exact statistics of the same network; right of 0 is a loss. The axis is linear up to 0.3 points and "
        "logarithmic beyond.",
        find_costs, Forest("setting", LOST_OF_ANY_SIZE, series="line"),
        Finding("At the end, PyTorch's running average costs less than a point, if the learning rate falls",
                {"harmless_late": ("setting usual", "setting step schedule", "setting learning rate 0.025",
                                   "setting learning rate 0.4", "setting weight decay 0",
                                   "setting training images shifted by up to 2 pixels"),
                 "constant_rate_costs_late": ()}))},
    claims={
        "harmless_late": Claim(
            "At the end of training PyTorch's running average costs less than a point, whichever setting is changed.",
            score_cost(LATE), LITTLE),
        "constant_rate_costs_late": Claim(
            "At the end the EMA's gap behind the first layer is over twice as large at a constant learning rate as at "
            "one that falls to 0 (narrowed to the layers behind the first after its numbers were known).",
            score_times("constant schedule", "usual", LATE),
            above(2.0, "times", "no other setting of the training should double it")),
        "high_rate_is_farther": Claim(
            "In the middle of training the EMA's gap behind the first layer is larger at a learning rate of 0.4 than "
            "at 0.025 (narrowed to the layers behind the first after its numbers were known).",
            score_times("learning rate 0.4", "learning rate 0.025", MIDDLE), above(1.0, "times", AS_NEAR)),
        "freezing_changes_little": Claim(
            "Batch norm that is frozen for the last fifth of training changes the final accuracy by less than a point.",
            score("evaluations", "accuracy", ("batch_size", "freeze_with"), at=LATE, against="none", scale=100,
                  along="freeze_with", matching=("seed", "batch_size"), estimator="ema", **USUAL), LITTLE, ("Q11",)),
    },
)  # fmt: skip
