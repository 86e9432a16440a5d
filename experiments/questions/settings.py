"""Does the cost of running averages depend on how the network is trained, and does it help to freeze batch norm?

One setting is changed at a time, at batch size 256; AdamW has a learning rate and weight decay of its own. Wu & Johnson
2021 (FrozenBN): if training continues under the statistics of evaluation, the two do not differ.
"""

import math
from functools import partial
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import (
    RATIO_OVER_LAYERS,
    OtherThan,
    average,
    put_in_order,
    rows,
    score,
    select,
    share_name,
)
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Score, Tables, above, within
from experiments.margins import A_POINT, AS_NEAR

MIDDLE = 0.55
LATE = 1.0
SHARES = (0.1, MIDDLE, LATE)  # of the training
USUAL: dict[str, Any] = {
    "optimizer": "sgd",
    "optimizer.lr": 0.1,
    "optimizer.schedule": "onecycle",
    "optimizer.weight_decay": 5e-4,
    "data.shift": 0,
}
SHORTER = {
    "usual": "one-cycle SGD, learning rate 0.1, weight decay 0.0005",
    "adamw": "AdamW",
    "training images": "images",
}
# How another value of each setting is called.
WORDS = {
    "optimizer": "{}",
    "optimizer.lr": "learning rate {:g}",
    "optimizer.schedule": "{} schedule",
    "optimizer.weight_decay": "weight decay {:g}",
    "data.shift": "training images shifted by up to {:g} pixels",
}
STATISTICS = {"exact": "exact statistics", "ema": "running averages"}
LITTLE = within(-1.0, 1.0, "points", A_POINT)


def select_changes(tables: Tables, table: str) -> pd.DataFrame:
    """Find rows of networks that are not frozen; `setting` is what differs from the usual training, in words."""
    settings = list(USUAL)
    frame = rows(tables, table, SHARES, settings, batch_size=256, freeze_with="none")
    networks = frame[settings].to_dict("records")
    frame["setting"] = [name_changes(network) for network in networks]
    return put_in_order(frame, "setting", ["usual"])


def name_changes(settings: dict[Any, Any]) -> str:
    """Say in what a network's settings differ from the usual training."""
    changes = []
    for setting, usual in USUAL.items():
        value = settings[setting]
        if value != usual:
            changes.append(WORDS[setting].format(value))
    return ", ".join(changes) or "usual"


def score_times(setting: str, against: str, share: float) -> Score:
    """Score the running average's gap under one setting over that under the other, in the deeper layers."""
    return score(
        lambda tables: select_changes(tables, "gaps"),
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


def select_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies in mid-training and at the end, those of the best setting first."""
    shares = [share_name(MIDDLE), share_name(LATE)]
    frame = select(select_changes(tables, "evaluations"), panel=shares, estimator=[*STATISTICS])
    # In the figure alone: claims name settings as `select_changes` does.
    frame["setting"] = frame["setting"].replace(SHORTER, regex=True)

    at_end = select(frame, panel=share_name(LATE), estimator="exact")
    means = at_end.groupby("setting")["accuracy"].mean()
    best_first = means.sort_values(ascending=False).index
    return put_in_order(frame, "setting", best_first)


def rank_settings(tables: Tables) -> pd.DataFrame:
    """Rank the settings by their mean accuracy, under each kind of statistics: the best one is the first."""
    means = score(select_accuracies, "accuracy", ("panel", "setting", "estimator"))(tables)
    ranks = means.groupby(["panel", "estimator"])["mean"].rank(ascending=False)
    return means.assign(mean=ranks, low=math.nan, high=math.nan, words=means["setting"])


def count_kept_order(tables: Tables, **wanted: Any) -> pd.DataFrame:
    """Find the share of pairs of settings that running averages put in the order of exact statistics, for each seed.

    Only pairs of networks of one seed count whose exact accuracies differ by over a point.
    """
    frame = select(select_changes(tables, "evaluations"), **wanted)
    keys = ["panel", "seed"]
    # A row for each setting, and all pairs of two of them within a seed.
    both = frame.pivot(index=[*keys, "setting"], columns="estimator", values="accuracy")
    settings = both.reset_index()
    pairs = settings.merge(settings, on=keys, suffixes=("", "_of_other"))

    gained = pairs["exact"] - pairs["exact_of_other"]
    gained_by_running = pairs["ema"] - pairs["ema_of_other"]
    pairs["alike"] = gained_by_running > 0
    # Each pair is there in both orders. Of these, the one whose first setting is better is kept.
    decided = pairs[gained > 0.01]
    return average(decided, "alike", ["panel", "seed"])


QUESTION = Question(
    bears_on=("Q20", "H2", "F3"),
    sweeps=("settings", "settings_freezing"),
    columns=("accuracy", "mean_gap"),
    remarks=(
        "**Added seeds.** In `results/reference` seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were "
        "known. All fifteen decide 1 of 14 conditions that the first five left undecided, and the added seeds alone "
        "decide it in the same way. No verdict of the first five became undecided or was reversed. Two claims that "
        "never had five seeds alone are not counted.",
    ),
    figures={"order": Figure(
        "Configurations under exact statistics and under running averages",
        "A line shows the rank of a configuration by test accuracy under exact statistics (left) and under running "
        "averages of the same networks (right), in batches of 256. Each configuration differs from one-cycle SGD in "
        "the setting that it names.",
        rank_settings,
        Curves("estimator", "words", Axis("place by mean accuracy", (8.4, 0.6)), across=Axis("")),
        Headline("At the end, running averages move the configuration with a constant rate from second place to "
                 "seventh",
                {"harmless_late": ("setting usual", "setting weight decay 0", "setting learning rate 0.4",
                                   "setting learning rate 0.025", "setting step schedule")},
                {"harmless_late": ("setting constant schedule",)}),
        names={"estimator": STATISTICS})},
    claims={
        "order_is_kept": Claim(
            "In over nine of ten pairs of settings that differ by over a point under exact statistics, running "
            "averages rank the two in the same order.",
            score(count_kept_order, "alike", ("panel",)),
            above(0.9, "share", "of the pairs; they would mislead once in ten picks"),
            lines="each", post_hoc="asked when the costs below were known, before the order was looked at"),
        "order_is_kept_at_falling_rates": Claim(
            "They do so at the end among settings whose learning rate falls.",
            score(partial(count_kept_order, setting=OtherThan("constant schedule")), "alike", ("panel",),
                  panel=share_name(LATE)),
            above(0.9, "share", "of the pairs; they would mislead once in ten picks"),
            lines="each", post_hoc="asked"),
        "harmless_late": Claim(
            "At the end of training PyTorch's running average costs less than a point, whichever setting is changed.",
            score(partial(select_changes, table="evaluations"), "accuracy", ("panel", "setting"), against="exact",
                  scale=-100, panel=share_name(LATE)), LITTLE, lines="each"),
        "constant_rate_costs_late": Claim(
            "At the end the running averages' gap in the deeper layers is over twice as large at a constant learning "
            "rate as at one that falls to 0.",
            score_times("constant schedule", "usual", LATE),
            above(2.0, "times", "no other training setting should double it"),
            lines="each", post_hoc="layers after the first only"),
        "high_rate_is_farther": Claim(
            "In the middle of training the running averages' gap in the deeper layers is larger at a learning rate "
            "of 0.4 than at 0.025.",
            score_times("learning rate 0.4", "learning rate 0.025", MIDDLE), above(1.0, "times", AS_NEAR),
            lines="each", post_hoc="layers after the first only"),
        "freezing_changes_little": Claim(
            "Freezing batch norm for the last fifth of training changes the final accuracy by less than a point.",
            score("evaluations", "accuracy", ("batch_size", "freeze_with"), at=LATE, against="none", scale=100,
                  along="freeze_with", matching=("seed", "batch_size"), estimator="ema", **USUAL), LITTLE,
                  lines="each"),
    },
)  # fmt: skip
